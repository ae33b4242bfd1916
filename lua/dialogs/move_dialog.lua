--[[
  Closes a dialog to appends (archived), or opens it again (active). The one that its user's messages go to makes way for a new one.

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
  ARGV[3]  str     what it becomes: archived or active
  ARGV[4]  str     reference of a new dialog for the profile
  ARGV[5]  int ms  how long it stays while idle
  ARGV[6]  str     message that asks for a drain, '' when the caller publishes

  RETURNS  {1, version, now ms}, {0, version} it is so already, {-1} not here, {-3, state} deleted, {-5} torn
]]
--- include clock
--- include outbox
--- include dialog
--- include dialog_write
local head, messages, ids, index, dirty, profile, outbox, kick, history = unpack(KEYS)
local ref, bot, becomes, new_ref, ttl, drain = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6]
local now = now_ms(ARGV[#ARGV])

local dialog = dialog_read(head, messages, ids)
if dialog == nil then return {-1} end
if dialog == false then return {-5} end
if dialog.st == 'deleted' then return {-3, dialog.st} end
if dialog.st == becomes then return {0, dialog.v} end
dialog.v, dialog.ex = dialog.v + 1, 0
redis.call('HSET', head, 'v', dialog.v, 'st', becomes, 'ut', string.format('%.0f', math.max(now, dialog.ut)))
dialog_touch(dialog, {head, messages, ids}, index, dirty, ref, now, ttl)
if becomes == 'archived' then
  redis.call('ZREM', index, ref)
  if redis.call('HGET', profile, 'dialog') == ref then redis.call('HSET', profile, 'dialog', new_ref) end
end
dialog_tell(dialog, outbox, kick, history, drain, ref, bot, now, 0, {}, true, {'st', becomes})
return {1, dialog.v, math.max(now, dialog.ut)}
