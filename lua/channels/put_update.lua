--[[
  Lays an update that came to the webhook down for the process that serves the bot; one that is known is left out.

  KEYS[1]  string  the mark of an update that was taken
  KEYS[2]  zset    the updates that wait
  KEYS[3]  hash    what they hold
  ARGV[1]  str     the update's id
  ARGV[2]  json    the update
  ARGV[3]  int     how many may wait
  ARGV[4]  int ms  for how long they do

  RETURNS  {1} laid down, {0} known, {-1} too many wait
]]
local taken, waiting, bodies = unpack(KEYS)
local id, body, most, ttl = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])

if redis.call('EXISTS', taken) == 1 or redis.call('HEXISTS', bodies, id) == 1 then return {0} end
if redis.call('HLEN', bodies) >= most then return {-1} end
redis.call('HSET', bodies, id, body)
redis.call('ZADD', waiting, id, id)
redis.call('PEXPIRE', bodies, ttl)
redis.call('PEXPIRE', waiting, ttl)
return {1}
