-- What every script knows that settles: the family's keys, the last five, and its ledger.

local OPEN, ENDS, SETTLED, ASSUMED, LEDGER = unpack(KEYS, #KEYS - 4)
local MOST, LASTS_MS, SETTLED_MS, AT_ONCE, RELEASED = '100000', '3024000000', '86400000', 1000, ' released'

-- An entry's id is its time in microseconds, one behind the last one's, should that be as late: no two have the same.
local function log(mark, entry)
  local time = format('%d', now)
  local added = redis.pcall('XADD', LEDGER, 'MAXLEN', '~', MOST, time, 'mark', mark, 'entry', entry)
  if type(added) == 'table' and added.err then
    local about = call('XINFO', 'STREAM', LEDGER)
    for i = 1, #about, 2 do
      if about[i] == 'last-generated-id' then time = format('%d', string.match(about[i + 1], '^%d+') + 1) end
    end
    call('XADD', LEDGER, 'MAXLEN', '~', MOST, time, 'mark', mark, 'entry', entry)
  end
  call('PEXPIRE', LEDGER, LASTS_MS)
  return time
end

-- Whatever comes late for this request finds that it is settled: until whoever settled it knows that it is, and then some.
-- Whether it was not settled yet.
local function close(request)
  if call('ZADD', SETTLED, 'NX', format('%d', now), request) == 0 then return false end
  call('PEXPIRE', SETTLED, SETTLED_MS)
  return true
end

-- Take a name out of a set, and from the ledger what was logged at its time; that and when, if it was there.
local function unlog(key, name)
  local time = call('ZSCORE', key, name)
  if not time then return nil end
  call('ZREM', key, name)
  local found = call('XRANGE', LEDGER, time, time)[1]
  if not found then return '', time end
  call('XDEL', LEDGER, found[1])
  return found[2][4], time
end

-- Take a request from among those that were assumed; what it was and when, if it was.
local function unassumed(name)
  return unlog(ASSUMED, name)
end

-- How a request is named among those that are open, or were assumed: for whoever does not know how much it holds.
local function named(key, request)
  for _, name in ipairs(call('ZRANGE', key, '0', '-1')) do
    if string.match(name, '^%S+') == request then return name end
  end
end
