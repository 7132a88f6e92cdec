-- Settles a request, once: what was held for it is spent at what it did cost; so is what was assumed of it.
--
-- KEYS     three for each budget (see budgets.lua); then the family's `open`, `open:ends`, `open:settled`, `open:assumed`
--          and `ledger`
-- ARGV     how many budgets; the request; a lease in microseconds; the mark; the entry, '' for none; then each budget's,
--          the last two: atoms reserved, and spent. With the mark `released`, those reserved may be others.
-- returns  1; 0 if it had been settled

local call, format = redis.call, string.format
local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]
local budgets, request, lease_us = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])

-- @budgets
-- @ledger

if not close(request) then return 0 end

local atoms = {}
for i = 1, budgets do atoms[i] = tonumber(ARGV[5 + STRIDE * i - 1]) end
local name = name_of(request, KEYS, atoms)
if ARGV[4] == 'released' and not call('ZSCORE', ENDS, name) then
  -- Given back by somebody who has not heard how much was granted.
  local found, held = named(ENDS, request) or named(ASSUMED, request), {}
  if found then
    name = found
    for key, much in string.gmatch(found, ' (%S+) (%d+)') do held[key] = tonumber(much) end
    for i = 1, budgets do atoms[i] = held[KEYS[3 * i - 2]] or 0 end
  end
end
local known = true
if call('ZREM', ENDS, name) == 1 then
  call('HDEL', OPEN, request)
else
  known = unassumed(name) ~= nil
end

for i = 1, budgets do
  if atoms[i] > 0 then
    local book = open_book(i, 6, 0)
    local member = request .. ' ' .. text(atoms[i])
    local counts = call('ZREM', book.holds, member) == 1
    if counts then
      hold(book, -atoms[i])
    else
      -- One that nobody knows: this Redis has lost its data since.
      counts = unassume(book, request) or not known
    end
    if counts and book.second > 0 then
      add(book, book.newest, book.second)
      keep(book, book.hash)
      keep(book, book.holds)
    end
  end
end
if ARGV[5] ~= '' then log(ARGV[4], ARGV[5]) end
return 1
