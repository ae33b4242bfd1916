--[[
  Makes the caller the one process that reads a Telegram bot's updates and sends its answers, or lets him stay so.

  KEYS[1]  string  who serves the bot
  ARGV[1]  str     token of the caller
  ARGV[2]  int ms  the lease

  RETURNS  {1} it is the caller, {0} it is another
]]
local lease = KEYS[1]
local token, ttl = ARGV[1], tonumber(ARGV[2])

local owner = redis.call('GET', lease)
if owner and owner ~= token then return {0} end
redis.call('SET', lease, token, 'PX', ttl)
return {1}
