--[[
  Lets another process serve a Telegram bot.

  KEYS[1]  string  who serves the bot
  ARGV[1]  str     token of the caller

  RETURNS  {1} it was the caller, {0} it was not
]]
local lease = KEYS[1]
local token = ARGV[1]

if redis.call('GET', lease) ~= token then return {0} end
redis.call('DEL', lease)
return {1}
