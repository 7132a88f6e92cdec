-- The rule of gateway/limits/rule.py, inside Redis: revocation and all limits are checked, then all are charged, or none.
--
-- KEYS     the token's revocation, then one for each limit, then the revocations of the tokens that it was made from
-- ARGV     the limits' kinds, a letter each (see below); a lease's id, '' for none, '?' to look and charge nothing;
--          then two numbers for each limit: quota and segment, interval or lease in microseconds
-- returns  {admitted 1 or 0, index of the limit from 0, remaining, microseconds until a place, time of charge}, and
--          where a kind is not 'w', {…, set of the limits that only a shadow let pass, lease's id};
--          index -2 for a token that is revoked; on a look {time, used, remaining, microseconds until a place, used, …}
--
-- w  sliding window   a byte 1; newest segment in 6 bytes, total and the newest segment's count in 4 each; then the
--                     counts of the segments before it, 4 bytes each, oldest first, without gaps
-- b  token bucket     'b', newest time charged and time when it is full, 16 digits each
-- l  places           a sorted set of lease ids by their ends
-- W, B, L             the same in shadow
-- g                   a bucket that no admission tells of: it guards against what repeats
--
-- A line that ends with an @ and a name is another one in reserve's script: see spend_scripts.py.
--
-- While the newest segment stays the same, a charge rewrites the head in place, which leaves the expiry alone as well.
-- Numbers go to redis.call as text, because it formats them slowly.

local call, sub, byte, char, format = redis.call, string.sub, string.byte, string.char, string.format
local SEGMENTS, HEAD, SLOT = 60, 15, 4

local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]
local limits, kinds, lease = #ARGV[1], ARGV[1], ARGV[2]
local last, alone = #KEYS, kinds == 'w' and lease == '' -- @reserve_begin

if call('EXISTS', KEYS[1]) == 1 or last > limits + 1 and call('EXISTS', unpack(KEYS, limits + 2, last)) > 0 then
  return {0, -2, 0, 0, now}
end

-- What nearly every check is: one window, charged in this segment already, with room, and no carry to the next byte of
-- its counts. The rest of this file does the same; this takes two thirds of its time.
local known
if alone then
  known = call('GET', KEYS[2])
  local size = known and #known or 0
  if size >= HEAD and size <= HEAD + SEGMENTS * SLOT and size % SLOT == HEAD % SLOT and byte(known) == 1 then
    local _, a, b, c, d, e, f, t, u, v, w, n, o, p, q, x, y, z, last_byte = byte(known, 1, HEAD + SLOT)
    local unit, total = tonumber(ARGV[4]), ((t * 256 + u) * 256 + v) * 256 + w + 1
    local newest = ((((a * 256 + b) * 256 + c) * 256 + d) * 256 + e) * 256 + f
    if
      newest == (now - now % unit) / unit
      and total <= tonumber(ARGV[3])
      and w < 255
      and q < 255
      and (size == HEAD or x + y + z + last_byte > 0)
    then
      call('SETRANGE', KEYS[2], '7', char(t, u, v, w + 1, n, o, p, q + 1))
      return {1, 0, ARGV[3] - total, (newest - (size - HEAD) / SLOT + SEGMENTS + 1) * unit - now, now}
    end
  end
end

local at, RETRY_US = now, 1000000
local WINDOW, BUCKET, GUARD, LEASE, TO_LOWER = 119, 98, 103, 108, 32

local function bytes_of(n)
  local d = n % 256
  n = (n - d) / 256
  local c = n % 256
  n = (n - c) / 256
  local b = n % 256
  return (n - b) / 256, b, c, d
end

-- 1. Read. The newest time charged in any window or bucket stands, should the clock have stepped back.
local values, newests, plain = {}, {}, true
for i = 1, limits do
  local kind = byte(kinds, i)
  if kind ~= WINDOW then
    plain = false
    if kind < 97 then kind = kind + TO_LOWER end
  end
  local value = known or kind ~= LEASE and call('GET', KEYS[i + 1])
  if value then
    local newest, charged
    if kind == WINDOW then
      local version, a, b, c, d, e, f = byte(value, 1, 7)
      if version == 1 and #value % SLOT == HEAD % SLOT and #value >= HEAD then
        newest = ((((a * 256 + b) * 256 + c) * 256 + d) * 256 + e) * 256 + f
        charged = newest * ARGV[2 * i + 2]
      end
    elseif #value == 33 and byte(value) == BUCKET then
      charged, newest = tonumber(sub(value, 2, 17)), tonumber(sub(value, 18, 33))
    end
    if not newest or not charged then
      return redis.error_reply('ERR the value of a limit key is not its kind\'s')
    end
    if charged > at then at = charged end
    values[i], newests[i] = value, newest
  end
end

-- 2. Check. `from` is where the older segments that still count begin in a window's value.
local segments, totals, froms, full, looks = {}, {}, {}, {}, {}
local refusing, free_at, shadowed = nil, 0, 0
local nearest, least, nearest_free_at = 0, 1e15, now
for i = 1, limits do
  local kind, quota, number = byte(kinds, i), tonumber(ARGV[2 * i + 1]), tonumber(ARGV[2 * i + 2])
  local shadow = kind < 97
  if shadow then kind = kind + TO_LOWER end
  local used, remaining, free

  if kind == WINDOW then
    local segment = (at - at % number) / number
    local value, total, from, oldest, size = values[i], 0, HEAD + 1, segment, 0
    if value and newests[i] >= segment - SEGMENTS then
      local a, b, c, d = byte(value, 8, 11)
      total, size = ((a * 256 + b) * 256 + c) * 256 + d, #value
      oldest = newests[i] - (size - HEAD) / SLOT
      while from < size do
        a, b, c, d = byte(value, from, from + 3)
        local count = ((a * 256 + b) * 256 + c) * 256 + d
        if count > 0 and oldest >= segment - SEGMENTS then break end
        total, from, oldest = total - count, from + SLOT, oldest + 1
      end
      if total <= 0 then oldest, total = segment, 0 end
    end
    segments[i], totals[i], froms[i] = segment, total, from
    used, remaining = total, quota - total - 1
    if remaining < -1 then
      -- A lower quota has come with a new configuration: more than the oldest segment has to leave.
      local surplus = total - quota
      while from < size do
        local a, b, c, d = byte(value, from, from + 3)
        surplus = surplus - (((a * 256 + b) * 256 + c) * 256 + d)
        if surplus < 0 then break end
        from, oldest = from + SLOT, oldest + 1
      end
    end
    free = (oldest + SEGMENTS + 1) * number

  elseif kind == BUCKET or kind == GUARD then
    local full_at = newests[i]
    local owed = full_at and full_at > at and full_at - at or 0
    local room = quota * number - owed
    used, remaining = math.ceil(owed / number), (room - room % number) / number - 1
    local part = owed % number
    free = at + (room < 0 and number - room or part > 0 and part or number)
    if kind == GUARD and remaining >= 0 and lease ~= '?' then remaining = least end -- never the nearest

  else
    if lease == '?' then
      used = call('ZCOUNT', KEYS[i + 1], format('(%d', now), '+inf')
    else
      used = call('ZCARD', KEYS[i + 1])
      if used >= quota then
        call('ZREMRANGEBYSCORE', KEYS[i + 1], '-inf', format('%d', now))
        used = call('ZCARD', KEYS[i + 1])
        -- A lease that would last longer than any can was made before the clock stepped back.
        local ends = format('%d', now + number)
        for _, id in ipairs(call('ZRANGEBYSCORE', KEYS[i + 1], '(' .. ends, '+inf')) do
          call('ZADD', KEYS[i + 1], ends, id)
        end
      end
    end
    remaining, free = quota - used - 1, now + RETRY_US
  end

  if lease == '?' then
    local wait = kind ~= LEASE and used > 0 and free - now or 0
    for _, told in ipairs({used, remaining < 0 and 0 or remaining + 1, wait}) do looks[#looks + 1] = told end
  elseif remaining < 0 then
    full[i], remaining = true, 0
    if shadow then
      shadowed = shadowed + 2 ^ (i - 1)
    elseif not refusing or free > free_at then
      refusing, free_at = i, free
    end
  end
  -- A place in flight comes back with its answer: nobody has to spare it.
  if kind ~= LEASE and remaining < least then
    nearest, least, nearest_free_at = i, remaining, free
  end
end
if lease == '?' then
  return {at, unpack(looks)}
end
-- @reserve_room
if refusing then
  return {0, refusing - 1, 0, free_at - now, at}
end

-- 3. Charge.
for i = 1, limits do
  local kind, number = byte(kinds, i), ARGV[2 * i + 2]
  if full[i] then
    kind = nil
  elseif kind < 97 then
    kind = kind + TO_LOWER
  end

  if kind == WINDOW then
    local value, segment, total = values[i], segments[i], totals[i] + 1
    if newests[i] == segment then
      local a, b, c, d = byte(value, 12, 15)
      local count = ((a * 256 + b) * 256 + c) * 256 + d + 1
      call('SETRANGE', KEYS[i + 1], '7', char(bytes_of(total)) .. char(bytes_of(count)))
    else
      local low = segment % 4294967296
      local high = (segment - low) / 4294967296
      local head = char(1, (high - high % 256) / 256, high % 256, bytes_of(low)) .. char(bytes_of(total)) .. '\0\0\0\1'
      if total > 1 then
        head = head .. sub(value, froms[i]) .. sub(value, 12, 15) .. string.rep('\0\0\0\0', segment - newests[i] - 1)
      end
      -- Until this segment has left the window. Redis adds it to a time of its own, up to 2 ms behind this one.
      call('SET', KEYS[i + 1], head, 'PX', format('%d', ((segment + SEGMENTS + 1) * number - now) / 1000 + 3))
    end

  elseif kind == BUCKET or kind == GUARD then
    local full_at = newests[i]
    full_at = (full_at and full_at > at and full_at or at) + number
    call('SET', KEYS[i + 1], format('b%016d%016d', at, full_at), 'PX', format('%d', (full_at - now) / 1000 + 3))

  elseif kind == LEASE then
    call('ZADD', KEYS[i + 1], format('%d', now + number), lease)
    call('PEXPIRE', KEYS[i + 1], format('%d', number / 1000 + 3))
  end
end
if nearest == 0 then least = 0 end
-- @reserve_hold
if plain then
  return {1, nearest - 1, least, nearest_free_at - now, at}
end
return {1, nearest - 1, least, nearest_free_at - now, at, shadowed, lease}
