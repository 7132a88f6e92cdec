-- The strict sliding window of gateway/limits/window.py, inside Redis: all limits are charged 1, or none is.
--
-- KEYS     one for each limit
-- ARGV     quota and segment in microseconds, for each limit in turn
-- returns  {admitted 1 or 0, index of the limit from 0, remaining, microseconds until a place, time of charge}
--
-- A value is text of fixed widths: newest segment, total, count of the newest segment; then the older segments
-- with their counts, oldest first:
--     000029041001 0000000007 0000000002 000029040998 0000000004 000029041000 0000000001
-- While the segment stays the same, a charge rewrites the head in place, which leaves the expiry alone as well.
-- Numbers go to redis.call as text, because it formats them slowly.

local call, sub, byte, format, ceil = redis.call, string.sub, string.byte, string.format, math.ceil
local SEGMENTS, HEAD, PAST = 60, 34, 24

local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]
local at = now
local limits = #KEYS

-- 1. Read. The newest time charged in any of the limits stands, should the clock have stepped back.
local values, newests = {}, {}
for i = 1, limits do
  local value = call('GET', KEYS[i])
  if value then
    local newest = tonumber(sub(value, 1, 12))
    if (#value - HEAD) % PAST ~= 0 or byte(value, 13) ~= 32 or not newest or newest < 0 then
      return redis.error_reply('ERR the value of a limit key is not a window')
    end
    local started = newest * ARGV[2 * i]
    if started > at then at = started end
    values[i], newests[i] = value, newest
  end
end

-- 2. Check. `from` is where the older segments that still count begin in the value.
local segments, totals, froms = {}, {}, {}
local refusing, free_at = nil, 0
local nearest, least, nearest_free_at = -1, 1e15, now
for i = 1, limits do
  local quota, segment_us = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  local segment = (at - at % segment_us) / segment_us
  local value, total, from, oldest = values[i], 0, HEAD + 1, segment
  if value and newests[i] >= segment - SEGMENTS then
    total = tonumber(sub(value, 14, 23))
    local last = segment - SEGMENTS
    while from < #value do
      oldest = tonumber(sub(value, from + 1, from + 12))
      if oldest >= last then break end
      total = total - sub(value, from + 14, from + 23)
      from = from + PAST
    end
    if from > #value then oldest = total > 0 and newests[i] or segment end
    if total < 0 then return redis.error_reply('ERR the value of a limit key is not a window') end
  end
  segments[i], totals[i], froms[i] = segment, total, from

  local remaining = quota - total - 1
  if remaining < 0 then
    -- A lower quota may have come with a new configuration: then more than the oldest segment has to leave.
    local surplus, position = total - quota, from
    while position < #value do
      oldest = tonumber(sub(value, position + 1, position + 12))
      surplus = surplus - sub(value, position + 14, position + 23)
      if surplus < 0 then break end
      position = position + PAST
    end
    if surplus >= 0 then oldest = newests[i] end
    local free = (oldest + SEGMENTS + 1) * segment_us
    if not refusing or free > free_at then refusing, free_at = i, free end
  elseif remaining < least then
    nearest, least, nearest_free_at = i, remaining, (oldest + SEGMENTS + 1) * segment_us
  end
end
if refusing then
  return {0, refusing - 1, 0, free_at - now, at}
end

-- 3. Charge.
for i = 1, limits do
  local value, segment = values[i], segments[i]
  if newests[i] == segment then
    call('SETRANGE', KEYS[i], '13', format('%010d %010d', totals[i] + 1, sub(value, 25, 34) + 1))
  else
    -- Until this segment has left the window. Redis adds it to a time of its own, up to 2 ms behind this one.
    local lives_ms = ceil(((segment + SEGMENTS + 1) * ARGV[2 * i] - now) / 1000) + 2
    local head = format('%012d %010d 0000000001', segment, totals[i] + 1)
    if totals[i] > 0 then
      local count = sub(value, 25, 34)
      if count == '0000000000' then
        head = head .. sub(value, froms[i])
      else
        head = head .. sub(value, froms[i]) .. ' ' .. sub(value, 1, 12) .. ' ' .. count
      end
    end
    call('SET', KEYS[i], head, 'PX', format('%d', lives_ms))
  end
end
return {1, nearest - 1, least, nearest_free_at - now, at}
