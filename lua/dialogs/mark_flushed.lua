--[[
  Remembers how far PostgreSQL has a dialog, so that no more than that is ever trimmed here.

  KEYS[1]  hash    the dialog's header
  ARGV[1]  int     seq of the last message that PostgreSQL has

  RETURNS  {1} remembered, {0} the dialog is not here, or more was known
]]
local head = KEYS[1]
local seq = tonumber(ARGV[1])

local known = tonumber(redis.call('HGET', head, 'fs') or -1)
if known < 0 or known >= seq then return {0} end
redis.call('HSET', head, 'fs', seq)
return {1}
