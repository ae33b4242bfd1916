--[[
  Marks an update as taken, and writes down in the same step what is to be sent in answer: it is answered once, whoever dies.

  KEYS[1]  string  the mark of an update that was taken
  KEYS[2]  hash    what is to be sent
  KEYS[3]  zset    the updates that wait
  KEYS[4]  hash    what they hold
  ARGV[1]  str     the update's id
  ARGV[2]  int ms  for how long the mark stays
  ARGV[3]  str     name of the answer, '' where none is due
  ARGV[4]  json    the answer
  ARGV[5]  int ms  for how long it may stay unsent

  RETURNS  {1} taken, {0} it was taken before
]]
local taken, unsent, waiting, bodies = unpack(KEYS)
local id, mark_ttl, name, answer, ttl = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], tonumber(ARGV[5])

if redis.call('EXISTS', taken) == 1 then return {0} end
redis.call('SET', taken, 1, 'PX', mark_ttl)
if name ~= '' then
  redis.call('HSETNX', unsent, name, answer)
  redis.call('PEXPIRE', unsent, ttl)
end
redis.call('ZREM', waiting, id)
redis.call('HDEL', bodies, id)
return {1}
