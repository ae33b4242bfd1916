--[[
  Puts a dialog that Redis lacks, or holds torn, in place from PostgreSQL and the outbox. What the torn header knows of numbers stays.

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
  ARGV[2]  int ms  how long it stays while idle
  ARGV[3]  int     seq of its last message
  ARGV[4]  int     seq of the last one that PostgreSQL has
  ARGV[5]  int     version
  ARGV[6]  int     the version that PostgreSQL has
  ARGV[7]  int     messages in all
  ARGV[8]  int     their tokens
  ARGV[9]  int ms  when it was last written or made
  ARGV[10] str     the bot
  ARGV[11] str     message that asks for a drain, '' when the caller publishes
  ARGV[12] int     2 n: the values that follow, name and value of the header's other fields in turn (st, user, kind, ct, ut, title, ...)
  ARGV[13] str     those values, then its last messages, packed, up to 200

  RETURNS  {1} loaded, {0} somebody else was first
]]
--- include clock
--- include outbox
--- include dialog
local head, messages, ids, index, dirty, born, outbox, kick, history = unpack(KEYS)
local ref, ttl, seq, flushed, version, flushed_version = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5]), ARGV[6]
local count, total, active, fields = tonumber(ARGV[7]), tonumber(ARGV[8]), ARGV[9], tonumber(ARGV[12])
local now = now_ms(ARGV[#ARGV])

if dialog_read(head, messages, ids) then return {0} end
redis.call('SET', born, string.format('%.0f', now), 'NX')
local torn = redis.call('HMGET', head, 'seq', 'v', 'cnt', 'sum')
if torn[1] then
  seq, version = math.max(seq, tonumber(torn[1])), math.max(version, tonumber(torn[2]))
  count, total = math.max(count, tonumber(torn[3])), math.max(total, tonumber(torn[4]))
end
redis.call('DEL', head, messages, ids)
local n, tok, lo = 0, 0, seq + 1
for i = 13 + fields, #ARGV - 1 do
  local mine, tokens, _, mid = dialog_unpack(ARGV[i])
  if redis.call('HSETNX', ids, mid, mine) == 1 then
    if n == 0 then lo = mine end
    n, tok = n + 1, tok + tokens
    redis.call('RPUSH', messages, ARGV[i])
  end
end
redis.call('HSET', head, 'v', version, 'fv', flushed_version, 'seq', seq, 'lo', lo, 'n', n, 'tok', tok, 'fs', flushed, 'lt', active,
           'cnt', count, 'sum', total, 'ex', string.format('%.0f', now), unpack(ARGV, 13, 12 + fields))
local h = redis.call('HMGET', head, 'st', 'user', 'kind')
if h[1] == 'active' then
  redis.call('ZADD', index, active, ref)
else
  ttl = math.min(ttl, 60000) -- closed: it is only read, and lives in PostgreSQL
end
if tonumber(flushed_version) < version then
  -- What it lacks is on its way, or came there since the caller looked: when this entry is drained, all before it is there.
  redis.call('ZADD', dirty, active, ref)
  outbox_add(outbox, kick, history, ARGV[11], 'dialog', ref, 'bot', ARGV[10], 'user', h[2], 'kind', h[3], 'v', version, 'at', active,
             'upto', string.format('%.0f', seq))
end
for _, key in ipairs({head, messages, ids}) do redis.call('PEXPIRE', key, ttl) end
for _, key in ipairs({index, dirty}) do redis.call('PEXPIRE', key, math.max(ttl, redis.call('PTTL', key))) end
return {1}
