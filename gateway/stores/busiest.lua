-- Adds to the scores of the sorted set KEYS[1], and keeps those with the most.
-- ARGV: for how many milliseconds it lives from now on; how many members are kept; their names and what to add.
for at = 3, #ARGV, 2 do
  redis.call('ZINCRBY', KEYS[1], ARGV[at + 1], ARGV[at])
end
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[1])
