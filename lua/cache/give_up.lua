--[[
  Ends a flight that brought nothing to keep. The next who looks asks; after two failures everybody for himself, for 10 s.

  KEYS[1]  hash    the flight: who asks
  KEYS[2]  zset    who waits for that
  ARGV[1]  str     the caller's task
  ARGV[2]  int     failures that this counts for

  RETURNS  the tasks that waited, at most 1,000; none where the flight is not the caller's
]]
local flight, waiting = unpack(KEYS)
local caller, failures = ARGV[1], tonumber(ARGV[2])

if redis.call('HGET', flight, 'who') ~= caller then return {} end
redis.call('HINCRBY', flight, 'failed', failures)
redis.call('HDEL', flight, 'who', 'until')
redis.call('PEXPIRE', flight, 10000)
local tasks = redis.call('ZRANGE', waiting, 0, 999)
redis.call('ZREMRANGEBYRANK', waiting, 0, 999)
return tasks
