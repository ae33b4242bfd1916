--[[
  Puts a changed profile in place, whatever was there: called after PostgreSQL has committed the change.

  KEYS[1]  hash    the user's profile
  ARGV[1]  str     his own zone, or ''
  ARGV[2]  str     his own daily limit, or ''
  ARGV[3]  str     his language, or ''
  ARGV[4]  str     reference of his dialog, where none is known here

  RETURNS  {1}
]]
local profile = KEYS[1]

redis.call('HSET', profile, 'zone', ARGV[1], 'limit', ARGV[2], 'language', ARGV[3])
redis.call('HSETNX', profile, 'dialog', ARGV[4])
redis.call('PEXPIRE', profile, 259200000)
return {1}
