--[[
  Writes down what came of an attempt: the delivery has ended, or is due again. A success counts even if it comes late; else an attempt
  that another has followed changes nothing any more.

  KEYS[1]  hash    the delivery
  KEYS[2]  zset    ledger: deliveries
  KEYS[3]  zset    the bot's attempts under way
  KEYS[4]  hash    the receiver's breaker
  KEYS[5]  stream  hooks outbox
  KEYS[6]  string  hooks outbox: a drain has been asked for
  KEYS[7]  list    Celery's webhooks queue
  ARGV[1]  str     the task's reference
  ARGV[2]  int     the attempt
  ARGV[3]  str     the receiver
  ARGV[4]  str     delivered, gone, failed, or retry
  ARGV[5]  int ms  from now until it is due again
  ARGV[6]  int     1 the receiver is at fault, -1 it is well, 0 this says nothing of it
  ARGV[7]  int     failures in a row after which a receiver is down
  ARGV[8]  str     message that asks for a drain, '' when the caller publishes
  ARGV[9]  int ms  how long the attempt took
  ARGV[10] str     HTTP status, or ''
  ARGV[11] str     why it is no success, or ''
  ARGV[12] str     how the answer began, or ''

  RETURNS  {1, state} written down, {0, state} it has ended or is another's, {-1} there is no such delivery
]]
--- include clock
--- include outbox
--- include hook
local hook, ledger, flight, breaker, outbox, kick, list = unpack(KEYS)
local ref, attempt, receiver, outcome, delay = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local blame, threshold, drain = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]
local took, status, problem, response = tonumber(ARGV[9]), ARGV[10], ARGV[11], ARGV[12]
local now = now_ms(ARGV[#ARGV])
local LONGEST = 300000

local record = redis.call('HMGET', hook, 'state', 'attempt', 'lease', 'until')
local state, gives_up = record[1], tonumber(record[4])
if not state then return {-1} end
local mine = record[2] == attempt and record[3]
if not mine and not (outcome == 'delivered' and state == 'pending') then return {0, state} end

local told = {'number', attempt, 'tried', now - took, 'status', status, 'error', problem, 'ms', took, 'response', response}
if state == 'pending' then
  if outcome == 'retry' and now + delay > gives_up then outcome = 'failed' end
  if outcome == 'retry' then
    redis.call('HSET', hook, 'due', now + delay)
    redis.call('ZADD', ledger, now + delay, ref)
  else
    hook_end(hook, outcome)
    redis.call('ZREM', ledger, ref)
  end
end
if mine then redis.call('HDEL', hook, 'lease') end
redis.call('ZREM', flight, receiver .. ' ' .. ref)
if blame > 0 then
  local failures = redis.call('HINCRBY', breaker, 'failures', 1)
  if failures >= threshold then
    redis.call('HSET', breaker, 'until', now + math.min(LONGEST, 10000 * 2 ^ math.min(failures - threshold, 10)))
  end
  redis.call('PEXPIRE', breaker, 3600000)
elseif blame < 0 then
  redis.call('DEL', breaker)
end
hook_tell(hook, outbox, kick, list, drain, ref, now, told)
return {1, redis.call('HGET', hook, 'state')}
