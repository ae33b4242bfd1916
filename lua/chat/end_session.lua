--[[
  Ends a user's present session where it is the one that is named: his next request begins another.

  KEYS[1]  string  the user's session
  ARGV[1]  str     the session's name

  RETURNS  {now ms, 1 when it was his present one}
]]
--- include clock
local session = KEYS[1]
local name = ARGV[1]

local present = redis.call('GET', session) == name
if present then redis.call('DEL', session) end
return {now_ms(ARGV[#ARGV]), present and 1 or 0}
