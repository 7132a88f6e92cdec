-- Settles a request, once: what was held for it is spent at what it cost; so is what was assumed of it.
--
-- KEYS     three for each budget (see budgets.lua); then the family's `open`, `open:ends`, `open:settled`, `open:assumed`
--          and `ledger`
-- ARGV     how many budgets; the request; a lease in microseconds; the mark; the entry, '' for none; output tokens granted,
--          -1 where whoever asked has not heard; then each budget's, in the first place atoms reserved for each token, in
--          the last two atoms reserved beside those, and spent
-- returns  1; 0 if it had been settled

local call, format = redis.call, string.format
local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]
local budgets, request, lease_us = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])

-- @budgets
-- @ledger

local off = off_clock(budgets, 7)
if off then return off end
-- One that was released by hand while it was under way has no cost yet.
if not close(request) and not unlog(SETTLED, request .. RELEASED) then return 0 end

local granted, atoms = tonumber(ARGV[6]), {}
local unheard = granted < 0
if unheard then
  local about = call('HGET', OPEN, request) or ''
  granted = tonumber(string.match(about, '"granted":(%d+)}$') or string.match(about, '^%d+$') or 0)
end
for i = 1, budgets do
  local at = 7 + STRIDE * (i - 1)
  atoms[i] = ARGV[at + 6] + ARGV[at] * granted
end
local name, known = name_of(request, KEYS, atoms), true
if call('ZREM', ENDS, name) == 1 then
  call('HDEL', OPEN, request)
else
  local assumed = unheard and named(ASSUMED, request)
  if assumed then
    local of = {}
    for key, much in string.gmatch(assumed, ' (%S+) (%d+)') do of[key] = tonumber(much) end
    for i = 1, budgets do atoms[i] = of[KEYS[3 * i - 2]] or 0 end
  end
  known = unassumed(assumed or name) ~= nil
end

for i = 1, budgets do
  if atoms[i] > 0 then
    local book = open_book(i, 7, 0)
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
