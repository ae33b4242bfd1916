--[[
  Deletes a dialog. A mark stays for an hour, so that a late worker, or a load that is under way, does not bring it back.

  KEYS[1]  hash    the dialog's header
  KEYS[2]  list    its messages
  KEYS[3]  hash    its message ids
  KEYS[4]  zset    the bot's dialogs that are here
  KEYS[5]  zset    those that PostgreSQL does not have as they are
  KEYS[6]  hash    its user's profile
  KEYS[7]  stream  dialogs outbox
  KEYS[8]  string  dialogs outbox: a drain has been asked for
  KEYS[9]  list    Celery's history queue
  ARGV[1]  str     the dialog's reference
  ARGV[2]  str     the bot
  ARGV[3]  str     reference of a new dialog for the profile
  ARGV[4]  str     its user, when the mark is to stay even where it is not here, else ''
  ARGV[5]  str     message that asks for a drain, '' when the caller publishes

  RETURNS  {1} deleted, {0} it was, {-1} not here
]]
--- include clock
--- include outbox
--- include dialog
--- include dialog_write
local head, messages, ids, index, dirty, profile, outbox, kick, history = unpack(KEYS)
local ref, bot, new_ref, user, drain = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local now = now_ms(ARGV[#ARGV])

local h = redis.call('HMGET', head, 'v', 'st', 'user', 'kind')
if not h[1] then
  if user == '' then return {-1} end
  h = {'0', '', user, 'dialog'}
end
if h[2] == 'deleted' then return {0} end
local dialog = {v = tonumber(h[1]) + 1, user = h[3], kind = h[4]}
redis.call('DEL', head, messages, ids)
redis.call('ZREM', index, ref)
if redis.call('ZADD', dirty, string.format('%.0f', now), ref) == 1 then redis.call('PEXPIRE', dirty, 3600000 * 24) end
redis.call('HSET', head, 'v', dialog.v, 'fv', 0, 'seq', 0, 'lo', 1, 'n', 0, 'tok', 0, 'st', 'deleted', 'fs', 0, 'lt', 0, 'cnt', 0, 'sum', 0,
           'ex', 0, 'user', '', 'kind', dialog.kind, 'ct', 0, 'ut', 0)
redis.call('PEXPIRE', head, 3600000)
if redis.call('HGET', profile, 'dialog') == ref then redis.call('HSET', profile, 'dialog', new_ref) end
dialog_tell(dialog, outbox, kick, history, drain, ref, bot, now, 0, {}, true, {'st', 'deleted'})
return {1}
