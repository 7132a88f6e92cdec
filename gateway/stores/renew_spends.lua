-- Renews reservations; one that had ended is there again, and so is one that this Redis never knew: it has lost its data.
--
-- KEYS  as settle.lua's
-- ARGV  how many budgets; a lease in microseconds; each budget's eight; then for each reservation the request, what the
--       ledger is told should nobody settle it, and how much of each budget is reserved

local call, format = redis.call, string.format
local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]
local budgets, lease_us = tonumber(ARGV[1]), tonumber(ARGV[2])

-- @budgets
-- @ledger

local off = off_clock(budgets, 3)
if off then return off end
local ends, books = text(now + lease_us), {}
for i = 1, budgets do books[i] = open_book(i, 3, 0) end
for at = 3 + STRIDE * budgets, #ARGV, 2 + budgets do
  local request, atoms = ARGV[at], {}
  for i = 1, budgets do atoms[i] = tonumber(ARGV[at + 1 + i]) end
  if not call('ZSCORE', SETTLED, request) then
    local name = name_of(request, KEYS, atoms)
    if call('ZADD', ENDS, ends, name) == 1 then
      call('HSET', OPEN, request, ARGV[at + 1])
      unassumed(name)
    end
    for i = 1, budgets do
      if atoms[i] > 0 and call('ZADD', books[i].holds, ends, request .. ' ' .. text(atoms[i])) == 1 then
        hold(books[i], atoms[i])
        unassume(books[i], request)
      end
    end
  end
end
for i = 1, budgets do
  keep(books[i], books[i].hash)
  keep(books[i], books[i].holds)
end
call('ZREMRANGEBYSCORE', SETTLED, '-inf', format('%d', now - SETTLED_MS * 1000))
call('PEXPIRE', OPEN, LASTS_MS)
call('PEXPIRE', ENDS, LASTS_MS)
return 1
