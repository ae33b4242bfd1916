--[[
  Keeps a flight in the hands of the task that asks.

  KEYS[1]  hash    the flight: who asks, and until when
  ARGV[1]  str     the caller's task
  ARGV[2]  int ms  the lease

  RETURNS  {1} it is the caller's, {0} it is not
]]
--- include clock
local flight = KEYS[1]
local caller, lease = ARGV[1], tonumber(ARGV[2])
local now = now_ms(ARGV[#ARGV])

if redis.call('HGET', flight, 'who') ~= caller then return {0} end
redis.call('HSET', flight, 'until', string.format('%.0f', now + lease))
redis.call('PEXPIRE', flight, lease + 60000)
return {1}
