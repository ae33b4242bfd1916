--[[
  Tells how much of a user's day is used, and changes nothing that counts.

  KEYS[1]  hash    the user's profile
  KEYS[2]  string  the day's counter
  KEYS[3]  zset    the day's reservations
  ARGV[1]  str     the user's own zone as the caller knows it, '' for the bot's
  ARGV[2]  int ms  when the local day began
  ARGV[3]  int ms  when it ends

  RETURNS  {1, used, his own limit or ''}, {-2} seed first, {-3, zone} his zone is another, {-4} the day is not today
]]
--- include clock
--- include day
local profile, day, day_open = unpack(KEYS)
local zone, day_starts, day_ends = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local now = now_ms(ARGV[#ARGV])

local own = redis.call('HMGET', profile, 'zone', 'limit')
if not own[1] then return {-2} end
if own[1] ~= zone then return {-3, own[1]} end
if now < day_starts or now >= day_ends then return {-4} end
local used = day_used(day, day_open, now)
if not used then return {-2} end
return {1, used, own[2] or ''}
