--[[
  Reads a task and, while it is unfinished, has the caller's process woken at its end: one step, so that no end is missed.

  KEYS[1]  hash    the task's record
  KEYS[2]  set     the task's waiters
  ARGV[1]  str     channel of the caller's process

  RETURNS  name, value, ... of the record; empty when there is no such task
]]
local task, waiters = unpack(KEYS)
local channel = ARGV[1]

local record = redis.call('HGETALL', task)
if #record == 0 then return record end
local state = redis.call('HGET', task, 'state')
if state == 'queued' or state == 'in_progress' then
  redis.call('SADD', waiters, channel)
  redis.call('PEXPIRE', waiters, math.max(1, redis.call('PTTL', task)))
end
return record
