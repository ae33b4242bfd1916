--[[
  Cancels a running task at once for everybody who waits; the worker (or the sweep, if it died) settles it afterwards.

  KEYS[1]  hash    the task's record
  KEYS[2]  set     the task's waiters
  ARGV[1]  str     the task's reference
  ARGV[2]  json    the error member that is shown

  RETURNS  {1} cancelled, {0, state} it is not running, {-1} there is no such task
]]
--- include clock
local task, waiters = unpack(KEYS)
local ref, error_json = ARGV[1], ARGV[2]
local now = now_ms(ARGV[#ARGV])

local state = redis.call('HGET', task, 'state')
if not state then return {-1} end
if state ~= 'in_progress' then return {0, state} end
redis.call('HSET', task, 'state', 'cancelled', 'settled', '0', 'finished', now, 'error', error_json)
for _, channel in ipairs(redis.call('SMEMBERS', waiters)) do redis.call('PUBLISH', channel, ref) end
redis.call('DEL', waiters)
return {1}
