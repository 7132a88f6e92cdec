-- Notes that an instance is there, and counts those that are.
--
-- KEYS     the sorted set of instances: when each is taken for gone, in microseconds
-- ARGV     the instance's id; for how many microseconds it is taken to be there, 0 to have it gone now
-- returns  {instances, the time in microseconds}

local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%d', now))
if ARGV[2] == '0' then
  redis.call('ZREM', KEYS[1], ARGV[1])
else
  redis.call('ZADD', KEYS[1], string.format('%d', now + ARGV[2]), ARGV[1])
  redis.call('PEXPIRE', KEYS[1], string.format('%d', ARGV[2] / 1000))
end
return {redis.call('ZCARD', KEYS[1]), now}
