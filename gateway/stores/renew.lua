-- Renews leases on the places of one limit; one that had ended is taken again, for its request is still under way.
--
-- KEYS  the limit's places
-- ARGV  how long a lease lasts in microseconds, then the leases' ids

local clock = redis.call('TIME')
local ends = string.format('%d', clock[1] * 1000000 + clock[2] + ARGV[1])
for i = 2, #ARGV do
  redis.call('ZADD', KEYS[1], ends, ARGV[i])
end
redis.call('PEXPIRE', KEYS[1], string.format('%d', ARGV[1] / 1000 + 3))
