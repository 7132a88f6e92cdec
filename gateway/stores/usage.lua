-- Adds counts to the hash KEYS[1].
-- ARGV: for how many milliseconds it lives from now on; how many counts follow; their names and numbers; names and texts.
local ends = 2 + 2 * ARGV[2]
for at = 3, ends, 2 do
  redis.call('HINCRBY', KEYS[1], ARGV[at], ARGV[at + 1])
end
for at = ends + 1, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1])
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
