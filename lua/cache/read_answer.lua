--[[
  Reads an answer and how old it is.

  KEYS[1]  hash    the answer

  RETURNS  {age in ms, answer}; empty where there is none
]]
--- include clock
local answer = KEYS[1]
local now = now_ms(ARGV[#ARGV])

local kept = redis.call('HMGET', answer, 'at', 'body')
if not kept[1] then return {} end
return {math.max(0, now - tonumber(kept[1])), kept[2]}
