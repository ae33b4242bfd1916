--[[
  Changes a dialog's title or metadata, or its summary (which only ever goes forward).

  KEYS[1]  hash    the dialog's header
  KEYS[2]  list    its messages
  KEYS[3]  hash    its message ids
  KEYS[4]  zset    the bot's dialogs that are here
  KEYS[5]  zset    those that PostgreSQL does not have as they are
  KEYS[6]  stream  dialogs outbox
  KEYS[7]  string  dialogs outbox: a drain has been asked for
  KEYS[8]  list    Celery's history queue
  ARGV[1]  str     the dialog's reference
  ARGV[2]  str     the bot
  ARGV[3]  str     the version that it must have, or ''
  ARGV[4]  int ms  how long it stays while idle
  ARGV[5]  str     message that asks for a drain, '' when the caller publishes
  ARGV[6]  int     up to which seq the summary goes, 0 when it is not what changes
  ARGV[7]  int     1 when PostgreSQL is to have the summary
  ARGV[8]  str     what changes: title, meta, sm and their values in turn

  RETURNS  {1, version, now ms}, {0, version} it is so already, or a later summary is there, {-1} not here, {-2, version} it has another version,
           {-3, state} deleted, {-5} torn
]]
--- include clock
--- include outbox
--- include dialog
--- include dialog_write
local head, messages, ids, index, dirty, outbox, kick, history = unpack(KEYS)
local ref, bot, expected, ttl, drain, folded = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])
local now = now_ms(ARGV[#ARGV])

local dialog = dialog_read(head, messages, ids)
if dialog == nil then return {-1} end
if dialog == false then return {-5} end
if dialog.st == 'deleted' then return {-3, dialog.st} end
local changes, same = {}, folded == 0
for i = 8, #ARGV - 1 do
  changes[#changes + 1] = ARGV[i]
  if i % 2 == 0 and same then same = redis.call('HGET', head, ARGV[i]) == ARGV[i + 1] end
end
if same then return {0, dialog.v} end -- a repeat, whose first answer was lost: the version that it asks for is gone
if expected ~= '' and tonumber(expected) ~= dialog.v then return {-2, dialog.v} end
if folded > 0 then
  if folded <= tonumber(redis.call('HGET', head, 'sq') or 0) then return {0, dialog.v} end
  changes[#changes + 1], changes[#changes + 2] = 'sq', string.format('%.0f', folded)
end
dialog.v = dialog.v + 1
redis.call('HSET', head, 'v', dialog.v, 'ut', string.format('%.0f', math.max(now, dialog.ut)), unpack(changes))
if dialog.st == 'active' then
  dialog_touch(dialog, {head, messages, ids}, index, dirty, ref, now, ttl)
elseif redis.call('ZADD', dirty, string.format('%.0f', now), ref) == 1 then
  redis.call('PEXPIRE', dirty, ttl)
end
if folded > 0 and ARGV[7] ~= '1' then changes = {} end
dialog_tell(dialog, outbox, kick, history, drain, ref, bot, now, 0, {}, true, changes)
return {1, dialog.v, math.max(now, dialog.ut)}
