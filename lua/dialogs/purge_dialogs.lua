--[[
  Lets dialogs leave that have been idle and that PostgreSQL has as they are. Each is looked at again, since it may have been used meanwhile.

  KEYS[1]  zset    the bot's dialogs that are here
  KEYS[2]  hash    header, messages and ids (a hash, a list, a hash) of each, in turn, up to 20 dialogs
  ARGV[1]  int ms  since when it must have been idle
  ARGV[2]  str     the dialogs' references

  RETURNS  the references of those that have left
]]
local index, each = KEYS[1], {unpack(KEYS, 2)}
local cutoff = tonumber(ARGV[1])

local gone = {}
for i = 2, #ARGV - 1 do
  local head, messages, ids = each[3 * i - 5], each[3 * i - 4], each[3 * i - 3]
  local h = redis.call('HMGET', head, 'v', 'fv', 'lt')
  if not h[1] then
    redis.call('ZREM', index, ARGV[i])
    gone[#gone + 1] = ARGV[i]
  elseif h[1] == h[2] and tonumber(h[3]) < cutoff then
    redis.call('UNLINK', head, messages, ids)
    redis.call('ZREM', index, ARGV[i])
    gone[#gone + 1] = ARGV[i]
  end
end
return gone
