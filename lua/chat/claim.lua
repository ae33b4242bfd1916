--[[
  Gives a queued task to a worker, under a lease; whatever message told of it, a task that is not queued is left alone.

  KEYS[1]  hash    the task's record
  KEYS[2]  stream  the pieces of an earlier attempt
  KEYS[3]  zset    ledger: queued
  KEYS[4]  zset    ledger: leased
  KEYS[5]  zset    ledger: due
  KEYS[6]  string  ledger: the latest sending time among claimed tasks
  KEYS[7]  set     the task's waiters
  KEYS[8]  zset    ledger: waiting
  ARGV[1]  str     the task's reference
  ARGV[2]  int ms  the lease

  RETURNS  {1, attempt, now ms, waited ms, name, value, ...} the record, {0, state} not queued, {-1} there is no such task
]]
--- include clock
local task, deltas, queued, leased, due, claimed, waiters, waiting = unpack(KEYS)
local ref, lease = ARGV[1], tonumber(ARGV[2])
local now = now_ms(ARGV[#ARGV])

local state = redis.call('HGET', task, 'state')
if not state then
  redis.call('ZREM', queued, ref)
  return {-1}
end
local sent = tonumber(redis.call('ZSCORE', queued, ref) or 0)
if state ~= 'queued' or redis.call('ZSCORE', due, ref) or redis.call('ZSCORE', waiting, ref) then return {0, state} end
local attempt = redis.call('HINCRBY', task, 'attempt', 1)
redis.call('HSET', task, 'state', 'in_progress', 'started', now, 'seq', 0)
redis.call('HDEL', task, 'reason')
if attempt > 1 then redis.call('DEL', deltas) end
redis.call('ZREM', queued, ref)
redis.call('ZADD', leased, now + lease, ref .. '/' .. attempt)
if sent > tonumber(redis.call('GET', claimed) or 0) then redis.call('SET', claimed, string.format('%.0f', sent), 'PX', 86400000) end
if redis.call('HGET', task, 'stream') == '1' then
  for _, channel in ipairs(redis.call('SMEMBERS', waiters)) do redis.call('PUBLISH', channel, ref) end
end
return {1, attempt, now, sent > 0 and now - sent or 0, unpack(redis.call('HGETALL', task))}
