--[[
  Adds a piece of the answer to the task's stream and wakes its readers; tells the worker to stop when the task is no longer its own.

  KEYS[1]  hash    the task's record
  KEYS[2]  stream  the pieces, ids attempt-seq
  KEYS[3]  set     the task's waiters
  ARGV[1]  str     the task's reference
  ARGV[2]  int     attempt
  ARGV[3]  int     seq of the piece, from 1
  ARGV[4]  json    the piece

  RETURNS  {1} added (or known from before), {0, state} the worker is to stop
]]
local task, deltas, waiters = unpack(KEYS)
local ref, attempt, seq, piece = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]

local record = redis.call('HMGET', task, 'state', 'attempt', 'seq')
if record[1] ~= 'in_progress' or record[2] ~= attempt then return {0, record[1] or ''} end
if seq <= tonumber(record[3] or 0) then return {1} end
redis.call('XADD', deltas, 'MAXLEN', '~', 20000, attempt .. '-' .. seq, 'd', piece)
redis.call('PEXPIRE', deltas, 3600000)
redis.call('HSET', task, 'seq', seq)
for _, channel in ipairs(redis.call('SMEMBERS', waiters)) do redis.call('PUBLISH', channel, ref) end
return {1}
