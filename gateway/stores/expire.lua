-- Enters into the ledger what ended unsettled in a family: its full amount, assumed.
--
-- KEYS     the family's `open`, `open:ends`, `open:settled`, `open:assumed` and `ledger`
-- returns  1 if there may be more

local call, format = redis.call, string.format
local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]

-- @ledger

local ended = call('ZRANGEBYSCORE', ENDS, '-inf', format('%d', now), 'LIMIT', '0', format('%d', AT_ONCE))
for _, name in ipairs(ended) do
  local request = string.match(name, '^%S+')
  local about, time = call('HGET', OPEN, request), format('%d', now)
  call('HDEL', OPEN, request)
  call('ZREM', ENDS, name)
  if about and string.find(about, '^{') then time = log('assumed', about) end
  call('ZADD', ASSUMED, time, name)
end
if #ended > 0 then
  call('ZREMRANGEBYSCORE', ASSUMED, '-inf', format('%d', now - LASTS_MS * 1000))
  call('PEXPIRE', ASSUMED, LASTS_MS)
  return #ended == AT_ONCE and 1 or 0
end
call('ZREMRANGEBYSCORE', SETTLED, '-inf', format('%d', now - SETTLED_MS * 1000))
return 0
