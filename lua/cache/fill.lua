--[[
  Keeps an answer, ends the flight if it is the caller's, and lets go of those who wait: at most 1,000, the others look by themselves.

  KEYS[1]  hash    the answer
  KEYS[2]  hash    the flight: who asks
  KEYS[3]  zset    who waits for that
  ARGV[1]  str     the caller's task
  ARGV[2]  str     the answer
  ARGV[3]  int ms  for how long it is kept
  ARGV[4]  int ms  how old it is already

  RETURNS  the tasks that waited
]]
--- include clock
local answer, flight, waiting = unpack(KEYS)
local caller, body, ttl, age = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local now = now_ms(ARGV[#ARGV])

redis.call('HSET', answer, 'at', string.format('%.0f', now - age), 'body', body)
redis.call('PEXPIRE', answer, ttl)
if redis.call('HGET', flight, 'who') == caller then redis.call('DEL', flight) end
local tasks = redis.call('ZRANGE', waiting, 0, 999)
redis.call('ZREMRANGEBYRANK', waiting, 0, 999)
return tasks
