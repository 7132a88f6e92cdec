-- Gives back what check.lua charged to windows and buckets, where it still counts. Places are given back with ZREM.
--
-- KEYS  one for each limit that was charged
-- ARGV  the time of the charge in microseconds; the limits' kinds, 'w' or 'b'; then for each limit its segment or
--       interval in microseconds

local call, byte, char = redis.call, string.byte, string.char
local HEAD, SLOT = 15, 4

local function number(value, from)
  local a, b, c, d = byte(value, from, from + 3)
  return ((a * 256 + b) * 256 + c) * 256 + d
end

local function text(n)
  local d = n % 256
  n = (n - d) / 256
  local c = n % 256
  n = (n - c) / 256
  local b = n % 256
  return char((n - b) / 256, b, c, d)
end

for i, key in ipairs(KEYS) do
  local value = call('GET', key)
  if value and byte(ARGV[2], i) == 98 then
    -- Only the newest charge: what an older one delayed cannot be told any more.
    if tonumber(string.sub(value, 2, 17)) == tonumber(ARGV[1]) then
      local full_at = string.sub(value, 18, 33) - ARGV[i + 2]
      call('SET', key, string.sub(value, 1, 17) .. string.format('%016d', full_at), 'KEEPTTL')
    end
  elseif value then
    local _, a, b, c, d, e, f = byte(value, 1, 7)
    local newest = ((((a * 256 + b) * 256 + c) * 256 + d) * 256 + e) * 256 + f
    local back = newest - math.floor(ARGV[1] / ARGV[i + 2])
    local from = 12
    if back > 0 then from = #value + 1 - back * SLOT end
    if back == 0 or back > 0 and from > HEAD then
      local count = number(value, from)
      if count > 0 then
        call('SETRANGE', key, '7', text(number(value, 8) - 1))
        call('SETRANGE', key, tostring(from - 1), text(count - 1))
      end
    end
  end
end
