--[[
  Takes a turn of sending for a chat, within what Telegram lets a bot send a second, and one message at a time to a chat.

  A turn counts from its begin to a second after its end: so no second of Telegram's own clock sees more of them, however long they travel.

  KEYS[1]  zset    the bot's turns: until when each counts
  KEYS[2]  string  until when the chat is to be left alone
  KEYS[3]  string  until when the bot is
  ARGV[1]  str     name of the turn
  ARGV[2]  int     how many of the bot's may count at once
  ARGV[3]  int ms  how long a turn may take

  RETURNS  {1} taken, {0, ms} not now: for how long
]]
--- include clock
local turns, chat, bot = unpack(KEYS)
local turn, most, lease = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local now = now_ms(ARGV[#ARGV])

if redis.call('ZSCORE', turns, turn) then return {1} end
local wait = math.max(tonumber(redis.call('GET', chat) or 0), tonumber(redis.call('GET', bot) or 0)) - now
if wait > 0 then return {0, wait} end
local over = redis.call('ZCOUNT', turns, now + 1, '+inf') - most
if over >= 0 then
  local ends = redis.call('ZRANGEBYSCORE', turns, now + 1, '+inf', 'WITHSCORES', 'LIMIT', over, 1)
  return {0, math.max(1, tonumber(ends[2]) - now)}
end
redis.call('ZADD', turns, now + lease, turn)
redis.call('ZREMRANGEBYSCORE', turns, '-inf', now)
redis.call('PEXPIRE', turns, lease + 1000)
redis.call('SET', chat, string.format('%.0f', now + lease), 'PX', lease)
return {1}
