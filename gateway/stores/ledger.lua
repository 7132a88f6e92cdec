-- What every script knows that settles: the family's keys, the last five, and its ledger.

local OPEN, ENDS, SETTLED, ASSUMED, LEDGER = unpack(KEYS, #KEYS - 4)
local MOST, LASTS_MS, SETTLED_MS, AT_ONCE = '100000', '3024000000', '86400000', 1000

-- An entry's id is the time in microseconds. Should the clock have stepped back, it is the last one's.
local function log(mark, entry)
  local words = {'mark', mark, 'entry', entry}
  local id = format('%.0f-0', now)
  local added = redis.pcall('XADD', LEDGER, 'MAXLEN', '~', MOST, id, unpack(words))
  if type(added) == 'table' and added.err then
    local newest = call('XREVRANGE', LEDGER, '+', '-', 'COUNT', '1')[1]
    local time, number = string.match(newest and newest[1] or id, '^(%d+)-(%d+)$')
    added = call('XADD', LEDGER, 'MAXLEN', '~', MOST, format('%s-%.0f', time, number + 1), unpack(words))
  end
  call('PEXPIRE', LEDGER, LASTS_MS)
  return string.match(added, '^%d+')
end

-- Whatever comes late for this request finds that it is settled: until whoever settled it knows that it is, and then some.
local function close(request)
  call('ZADD', SETTLED, format('%.0f', now), request)
  call('PEXPIRE', SETTLED, SETTLED_MS)
end

-- The entry that assumed a request, and its id.
local function assumed_at(time, request)
  for _, one in ipairs(call('XRANGE', LEDGER, time, time)) do
    if string.find(one[2][4], '"id":"' .. request .. '"', 1, true) then return one[2][4], one[1] end
  end
end
