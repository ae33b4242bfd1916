--[[
  Ends a turn of sending: from now on the second counts, and the chat's pause. Where Telegram said "too many requests" the chat is left
  alone for as long as it said; two chats to which it said so at about one time mean the whole bot.

  KEYS[1]  zset    the bot's turns: until when each counts
  KEYS[2]  string  until when the chat is to be left alone
  KEYS[3]  string  until when the bot is
  KEYS[4]  string  the chat that was refused last
  ARGV[1]  str     name of the turn
  ARGV[2]  str     the chat
  ARGV[3]  int ms  pause between two messages of the chat
  ARGV[4]  int ms  for how long Telegram wants to be left alone, 0 if it does not

  RETURNS  {1}
]]
--- include clock
local turns, chat, bot, refused = unpack(KEYS)
local turn, name, pause, retry = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local now = now_ms(ARGV[#ARGV])

redis.call('ZADD', turns, now + 1000, turn)
redis.call('PEXPIRE', turns, 60000)
local rest = math.max(pause, retry)
redis.call('SET', chat, string.format('%.0f', now + rest), 'PX', rest)
if retry > 0 then
  local other = redis.call('GET', refused)
  if other and other ~= name then redis.call('SET', bot, string.format('%.0f', now + retry), 'PX', retry) end
  redis.call('SET', refused, name, 'PX', 10000)
end
return {1}
