-- Settles a request by hand, for nothing, if it is open, or was assumed. Whoever still has it under way may yet say
-- what it cost, once.
--
-- KEYS     as expire.lua's; in the names of what is open and assumed are the budgets that it is held in, in the same slot
-- ARGV     the request
-- returns  {the ledger's entry of what it was, when it was assumed, 0 for one that was open}; {} if it is neither

local call, format = redis.call, string.format
local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]
local request = ARGV[1]

-- @ledger

local name, time, entry = named(ENDS, request), '0', ''
local is_open = name ~= nil
if name then
  entry = string.match(call('HGET', OPEN, request) or '', '^{.*') or ''
  call('HDEL', OPEN, request)
  call('ZREM', ENDS, name)
else
  name = named(ASSUMED, request)
  if not name then return {} end
  entry, time = unassumed(name)
end
for key, atoms in string.gmatch(name, ' (%S+) (%d+)') do
  if call('ZREM', key .. ':held', request .. ' ' .. atoms) == 1 then
    call('HINCRBY', key, 'held', '-' .. atoms)
  else
    local was = call('HGET', key .. ':assumed', request)
    if was then
      call('HDEL', key .. ':assumed', request)
      local much, segment = string.match(was, '^(%d+) (%d+)$')
      if call('HEXISTS', key, segment) == 1 then call('HINCRBY', key, segment, '-' .. much) end
    end
  end
end
close(request)
local logged = entry ~= '' and log('released', entry) or format('%d', now)
if is_open then call('ZADD', SETTLED, logged, request .. RELEASED) end
return {entry, time}
