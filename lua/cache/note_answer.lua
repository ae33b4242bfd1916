--[[
  Notes that an answer is kept because of a user, so that it goes when he is forgotten; not if that has happened since the caller looked.

  KEYS[1]  string  the user's cache epoch
  KEYS[2]  zset    answers that are kept because of him
  ARGV[1]  str     the epoch that the caller saw, ''
  ARGV[2]  str     the answer's hash
  ARGV[3]  int ms  for how long it is kept
  ARGV[4]  int     answers of a user that are kept at most

  RETURNS  {1, hash, ...} noted, and the answers beyond the most, which are to go; {0} he was forgotten meanwhile
]]
--- include clock
local epoch, answers = unpack(KEYS)
local seen, hash, ttl, most = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local now = now_ms(ARGV[#ARGV])

if (redis.call('GET', epoch) or '') ~= seen then return {0} end
redis.call('ZADD', answers, now + ttl, hash)
redis.call('PEXPIRE', answers, math.max(ttl, redis.call('PTTL', answers)))
redis.call('ZREMRANGEBYSCORE', answers, '-inf', string.format('%.0f', now - 1))
local told = {1}
local beyond = redis.call('ZCARD', answers) - most
if beyond > 0 then
  for _, old in ipairs(redis.call('ZRANGE', answers, 0, beyond - 1)) do told[#told + 1] = old end
  redis.call('ZREMRANGEBYRANK', answers, 0, beyond - 1)
end
return told
