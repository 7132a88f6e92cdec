-- Gives back a charge of 1 that sliding_window.lua made, where its segment is still counted.
--
-- KEYS  one for each limit
-- ARGV  the time of the charge in microseconds, then the segment in microseconds for each limit in turn

local HEAD, PAST = 34, 24

for i, key in ipairs(KEYS) do
  local value = redis.call('GET', key)
  if value then
    local segment = math.floor(ARGV[1] / ARGV[i + 1])
    local name = string.format('%012d', segment)
    local total = tonumber(string.sub(value, 14, 23))
    local count = tonumber(string.sub(value, 25, 34))
    local past = string.sub(value, HEAD + 1)
    local given_back = false
    if string.sub(value, 1, 12) == name then
      given_back = count > 0
      count = math.max(count - 1, 0)
    else
      for from = 1, #past, PAST do
        if string.sub(past, from + 1, from + 12) == name then
          local left = string.sub(past, from + 14, from + 23) - 1
          local entry = left > 0 and string.format(' %s %010d', name, left) or ''
          past = string.sub(past, 1, from - 1) .. entry .. string.sub(past, from + PAST)
          given_back = true
        end
      end
    end
    if given_back then
      local head = string.format('%s %010d %010d', string.sub(value, 1, 12), total - 1, count)
      redis.call('SET', key, head .. past, 'KEEPTTL')
    end
  end
end
