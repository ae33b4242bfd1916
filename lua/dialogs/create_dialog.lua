--[[
  Makes a dialog, with its first messages.

  KEYS[1]  hash    the dialog's header
  KEYS[2]  list    its messages
  KEYS[3]  hash    its message ids
  KEYS[4]  zset    the bot's dialogs that are here
  KEYS[5]  zset    those that PostgreSQL does not have as they are
  KEYS[6]  string  when the shard's store was first used
  KEYS[7]  stream  dialogs outbox
  KEYS[8]  string  dialogs outbox: a drain has been asked for
  KEYS[9]  list    Celery's history queue
  ARGV[1]  str     the dialog's reference
  ARGV[2]  str     the bot
  ARGV[3]  str     its user
  ARGV[4]  str     title, or ''
  ARGV[5]  json    metadata, or ''
  ARGV[6]  int     1 when PostgreSQL is to have its messages
  ARGV[7]  int     how many messages are kept here
  ARGV[8]  int ms  how long it stays while idle
  ARGV[9]  str     message that asks for a drain, '' when the caller publishes
  ARGV[10] str     mid, role, tokens, metadata and body of each message

  RETURNS  {1, version, now ms}, {0} there is one of that reference
]]
--- include clock
--- include outbox
--- include dialog
--- include dialog_write
local head, messages, ids, index, dirty, born, outbox, kick, history = unpack(KEYS)
local ref, bot, user, title, meta, lasting = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6] == '1'
local keep, ttl, drain = tonumber(ARGV[7]), tonumber(ARGV[8]), ARGV[9]
local now = now_ms(ARGV[#ARGV])
local stamp = string.format('%.0f', now)

if redis.call('EXISTS', head) == 1 then return {0} end
redis.call('SET', born, stamp, 'NX')
redis.call('DEL', messages, ids)
local dialog = {v = 1, seq = 0, lo = 1, n = 0, tok = 0, st = 'active', fs = 0, lt = now, cnt = 0, sum = 0, ex = 0, user = user,
                kind = 'dialog'}
redis.call('HSET', head, 'v', 1, 'fv', 0, 'seq', 0, 'lo', 1, 'n', 0, 'tok', 0, 'st', 'active', 'fs', 0, 'lt', stamp, 'cnt', 0, 'sum', 0,
           'ex', 0, 'user', user, 'kind', 'dialog', 'ct', stamp, 'ut', stamp, 'title', title, 'meta', meta, 'sq', 0)
local flat = {}
for i = 10, #ARGV - 1 do flat[#flat + 1] = ARGV[i] end
local first, packed = dialog_append(dialog, head, messages, ids, now, keep, lasting, flat)
dialog_touch(dialog, {head, messages, ids}, index, dirty, ref, now, ttl)
dialog_tell(dialog, outbox, kick, history, drain, ref, bot, now, first, packed, lasting, {'title', title, 'meta', meta, 'st', 'active', 'ct', stamp})
return {1, dialog.v, now}
