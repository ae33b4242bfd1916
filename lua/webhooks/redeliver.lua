--[[
  Makes a delivery due once more, whatever became of it, also where this Redis has forgotten it; the task's record stays as long.

  KEYS[1]  hash    the delivery
  KEYS[2]  zset    ledger: deliveries
  KEYS[3]  hash    the task's record
  KEYS[4]  stream  hooks outbox
  KEYS[5]  string  hooks outbox: a drain has been asked for
  KEYS[6]  list    Celery's webhooks queue
  ARGV[1]  str     the task's reference
  ARGV[2]  str     bot
  ARGV[3]  str     URL
  ARGV[4]  str     type of what is told
  ARGV[5]  int ms  when the delivery was made
  ARGV[6]  int     attempts that the log knows of
  ARGV[7]  int ms  for how long it is tried
  ARGV[8]  int ms  how long after that the records stay
  ARGV[9]  str     message for the webhooks queue with ~ref~ in it, '' when the caller publishes
  ARGV[10] str     message that asks for a drain, '' when the caller publishes
  ARGV[11] json    the data of a message that is no task's, else ''

  RETURNS  {1} it is due, {2} an attempt is under way or about to be
]]
--- include clock
--- include queue
--- include outbox
--- include hook
local hook, ledger, task, outbox, kick, list = unpack(KEYS)
local ref, bot, url, type_, created, known = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
local window, slack, message, drain = tonumber(ARGV[7]), tonumber(ARGV[8]), ARGV[9], ARGV[10]
local now = now_ms(ARGV[#ARGV])
local SOON = 20000

local record = redis.call('HMGET', hook, 'state', 'attempt', 'lease', 'due')
if tonumber(record[3] or 0) > now then return {2} end
if record[1] == 'pending' and tonumber(record[4]) <= now then return {2} end
redis.call('HSET', hook, 'bot', bot, 'url', url, 'type', type_, 'created', created, 'state', 'pending',
           'attempt', math.max(known, tonumber(record[2] or 0)), 'due', now, 'until', now + window, 'payload', ARGV[11])
redis.call('PEXPIRE', hook, window + slack)
if redis.call('EXISTS', task) == 1 and redis.call('PTTL', task) < window + slack then redis.call('PEXPIRE', task, window + slack) end
send(ref, now + SOON, ledger, list, message)
hook_tell(hook, outbox, kick, list, drain, ref, now, {})
return {1}
