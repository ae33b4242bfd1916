--[[
  Begins a new epoch of a user's answers, so that nothing that was kept for him is found again, and tells what is kept because of him.

  KEYS[1]  string  the user's cache epoch
  KEYS[2]  zset    answers that are kept because of him
  ARGV[1]  str     the new epoch
  ARGV[2]  int ms  longer than any answer is kept

  RETURNS  the answers' hashes; they are to be taken out of the list when they are gone
]]
local epoch, answers = unpack(KEYS)
local new, ttl = ARGV[1], tonumber(ARGV[2])

redis.call('SET', epoch, new, 'PX', ttl)
return redis.call('ZRANGE', answers, 0, -1)
