--[[
  Lists the dialogs of a bot that PostgreSQL does not have as they are now, latest first; the others are in PostgreSQL's own list.

  KEYS[1]  zset    the bot's dialogs that PostgreSQL does not have as they are
  ARGV[1]  int     at most so many

  RETURNS  the dialogs' references
]]
local dirty = KEYS[1]
local most = tonumber(ARGV[1])

if most < 1 then return {} end
return redis.call('ZREVRANGE', dirty, 0, most - 1)
