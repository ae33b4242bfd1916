--[[
  Puts a running task back until a due time: a retry that should not hold a worker's thread.

  KEYS[1]  hash    the task's record
  KEYS[2]  zset    ledger: leased
  KEYS[3]  zset    ledger: due
  ARGV[1]  str     the task's reference
  ARGV[2]  int     attempt
  ARGV[3]  int ms  from now until it is sent again
  ARGV[4]  str     reason, shown to who asks for the task
  ARGV[5]  int     model calls made so far

  RETURNS  {1} parked, {0, state} the task is no longer the caller's
]]
--- include clock
local task, leased, due = unpack(KEYS)
local ref, attempt, delay, reason, calls = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local now = now_ms(ARGV[#ARGV])

local record = redis.call('HMGET', task, 'state', 'attempt')
if record[1] ~= 'in_progress' or record[2] ~= attempt then return {0, record[1] or ''} end
redis.call('HSET', task, 'state', 'queued', 'reason', reason, 'calls', calls)
redis.call('ZREM', leased, ref .. '/' .. attempt)
redis.call('ZADD', due, now + delay, ref)
return {1}
