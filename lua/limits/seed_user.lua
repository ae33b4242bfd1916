--[[
  Gives a user's profile and day back to Redis as PostgreSQL and the outbox know them; what is there already stays.

  KEYS[1]  hash    the user's profile
  KEYS[2]  string  the day's counter
  KEYS[3]  zset    the day's reservations
  KEYS[4]  string  when the shard's store was first used
  ARGV[1]  str     his own zone, or ''
  ARGV[2]  str     his own daily limit, or ''
  ARGV[3]  str     his language, or ''
  ARGV[4]  str     reference of his dialog
  ARGV[5]  int     requests of the day that count
  ARGV[6]  int ms  until when an open request stays reserved
  ARGV[7]  str     references of the day's open requests

  RETURNS  {1 when the counter was made, 0 when it was there}
]]
--- include clock
local profile, day, day_open, born = unpack(KEYS)
local zone, limit, language, dialog, counted, lapse = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
local now = now_ms(ARGV[#ARGV])
local KEPT = 259200000

redis.call('SET', born, string.format('%.0f', now), 'NX')
if redis.call('EXISTS', profile) == 0 then
  redis.call('HSET', profile, 'zone', zone, 'limit', limit, 'language', language, 'dialog', dialog)
  redis.call('PEXPIRE', profile, KEPT)
end
if redis.call('EXISTS', day) == 1 then return {0} end
for i = 7, #ARGV - 1 do
  if redis.call('ZSCORE', day_open, '!' .. ARGV[i]) then
    counted = counted + 1
  elseif not redis.call('ZSCORE', day_open, '-' .. ARGV[i]) then
    redis.call('ZADD', day_open, now + lapse, ARGV[i])
  end
end
for _, ref in ipairs(redis.call('ZRANGE', day_open, 0, 9999)) do
  if string.find(ref, '^[!-]') then redis.call('ZREM', day_open, ref) end
end
redis.call('PEXPIRE', day_open, KEPT)
redis.call('SET', day, counted, 'PX', KEPT)
return {1}
