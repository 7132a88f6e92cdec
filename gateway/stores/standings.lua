-- Says how budgets stand.
--
-- KEYS     three for each budget: see budgets.lua
-- ARGV     how many budgets; a lease in microseconds; each budget's eight
-- returns  three for each: atoms spent, atoms held, microseconds until some of what is spent leaves the window

local call, format = redis.call, string.format
local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]
local lease_us = tonumber(ARGV[2])

-- @budgets

local off = off_clock(tonumber(ARGV[1]), 3)
if off then return off end
local told = {}
for i = 1, tonumber(ARGV[1]) do
  local book, oldest = open_book(i, 3, 0), nil
  for segment in pairs(book.spent) do
    if not oldest or segment < oldest then oldest = segment end
  end
  told[#told + 1], told[#told + 2] = book.total, book.held
  told[#told + 1] = oldest and (leaves_at(book, oldest) or now) - now or 0
end
return told
