--[[
  Remembers what PostgreSQL has of a dialog, so that no more than that is ever trimmed here. An archived one that it has whole leaves.

  KEYS[1]  hash    the dialog's header
  KEYS[2]  list    its messages
  KEYS[3]  hash    its message ids
  KEYS[4]  zset    the bot's dialogs that PostgreSQL does not have as they are
  ARGV[1]  str     the dialog's reference
  ARGV[2]  int     seq of the last message that PostgreSQL has, 0 when none was written
  ARGV[3]  int     the version that PostgreSQL has

  RETURNS  {1} remembered, {2} and the dialog has left, {0} the dialog is not here,
           {3} it was deleted, and what was written of it is to be deleted again
]]
local head, messages, ids, dirty = unpack(KEYS)
local ref, seq, version = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

local h = redis.call('HMGET', head, 'v', 'fv', 'fs', 'st')
if not h[1] then
  redis.call('ZREM', dirty, ref)
  return {0}
end
if h[4] == 'deleted' and version < tonumber(h[1]) then return {3} end
if seq > tonumber(h[3]) then redis.call('HSET', head, 'fs', seq) end
if version > tonumber(h[2] or 0) then redis.call('HSET', head, 'fv', version) end
if version < tonumber(h[1]) then return {1} end
redis.call('ZREM', dirty, ref)
if h[4] ~= 'archived' then return {1} end
redis.call('UNLINK', head, messages, ids)
return {2}
