-- Tries each command that budgets and the ledger use: an ACL user who may not would find out when money is at stake.
--
-- KEYS     three of nobody's, in one slot
-- returns  the names of those that do not work

local denied = {}
for _, words in ipairs({
  {'HSET', KEYS[1], 'name', '1'}, {'HINCRBY', KEYS[1], 'name', '1'}, {'HGET', KEYS[1], 'name'}, {'HGETALL', KEYS[1]},
  {'HEXISTS', KEYS[1], 'name'}, {'ZADD', KEYS[2], '1', 'name'}, {'ZSCORE', KEYS[2], 'name'}, {'ZRANGE', KEYS[2], '0', '-1'},
  {'ZRANGEBYSCORE', KEYS[2], '-inf', '+inf'}, {'XADD', KEYS[3], 'MAXLEN', '~', '1', '*', 'name', '1'},
  {'XINFO', 'STREAM', KEYS[3]}, {'XRANGE', KEYS[3], '-', '+'}, {'PEXPIRE', KEYS[3], '1000'}, {'EXISTS', KEYS[3]},
  {'XDEL', KEYS[3], '1'}, {'ZREMRANGEBYSCORE', KEYS[2], '-inf', '0'}, {'ZREM', KEYS[2], 'name'}, {'HDEL', KEYS[1], 'name'},
}) do
  local reply = redis.pcall(unpack(words))
  if type(reply) == 'table' and reply.err then denied[#denied + 1] = words[1] end
end
return denied
