-- Notes a line in a register: what has ended goes, and of too many those that end first.
--
-- KEYS  the register, a sorted set of lines by the second they end in
-- ARGV  when the line ends; the line; now, in seconds; how many lines are kept; for how many seconds the key is

redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[3])
redis.call('ZADD', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZREMRANGEBYRANK', KEYS[1], '0', string.format('%d', -1 - ARGV[4]))
redis.call('PEXPIRE', KEYS[1], string.format('%d', ARGV[5] * 1000))
