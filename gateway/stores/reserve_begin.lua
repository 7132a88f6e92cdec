-- Behind the KEYS of a check: three for each budget (see budgets.lua), and the family's `open`, `open:ends`,
-- `open:settled`. Behind its ARGV: how many budgets; the request; its lease in microseconds; output tokens at most, and at
-- least; what the ledger is told should nobody settle it; then each budget's, the last two: atoms fixed, and of each token.
local asked = 2 * limits + 3
local budgets, request, lease_us = tonumber(ARGV[asked]), ARGV[asked + 1], tonumber(ARGV[asked + 2])
local last, alone = #KEYS - 3 * budgets - 3, false

-- Given back before it came here, on another connection: nobody waits for it.
if call('ZSCORE', KEYS[#KEYS], request) then
  return {0, -2, 0, 0, now}
end

-- @budgets
