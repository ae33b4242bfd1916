--[[
  Sends a task again: its lease ran out (a death), its message was lost, its due time has come, or a worker hands it back.

  KEYS[1]  hash    the task's record
  KEYS[2]  zset    ledger: queued
  KEYS[3]  zset    ledger: leased
  KEYS[4]  zset    ledger: due
  KEYS[5]  list    Celery's chat queue
  ARGV[1]  str     the task's reference
  ARGV[2]  str     why: lapsed, lost, due, handed_back, or woken (due, and not waited for any longer)
  ARGV[3]  str     what the caller saw: the attempt (lapsed, handed_back) or the score (lost)
  ARGV[4]  int     deaths after which a task is poison
  ARGV[5]  str     message for the chat queue with ~ref~ in it, '' when the caller publishes

  RETURNS  {1} sent, {0, state} it moved on meanwhile, {-1} there is no such task, {-2} poison, {-3} cancelled and never settled
]]
--- include clock
--- include queue
local task, queued, leased, due, chat = unpack(KEYS)
local ref, why, seen, max_deaths, message = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local now = now_ms(ARGV[#ARGV])

local record = redis.call('HMGET', task, 'state', 'attempt', 'deaths', 'settled')
local state = record[1]
local lease = ref .. '/' .. seen
if not state then
  redis.call('ZREM', queued, ref)
  redis.call('ZREM', due, ref)
  redis.call('ZREM', leased, lease)
  return {-1}
end

if why == 'lapsed' or why == 'handed_back' then
  local ends = tonumber(redis.call('ZSCORE', leased, lease) or -1)
  if ends < 0 or (why == 'lapsed' and ends > now) then return {0, state} end
  if state == 'cancelled' and record[4] == '0' then return {-3} end
  if state ~= 'in_progress' or record[2] ~= seen then
    redis.call('ZREM', leased, lease)
    return {0, state}
  end
  if why == 'lapsed' then
    if tonumber(record[3]) + 1 >= max_deaths then return {-2} end
    redis.call('HINCRBY', task, 'deaths', 1)
  end
  redis.call('HSET', task, 'state', 'queued')
  redis.call('ZREM', leased, lease)
elseif why == 'lost' then
  if state ~= 'queued' or redis.call('ZSCORE', queued, ref) ~= seen then return {0, state} end
else
  local time = redis.call('ZSCORE', due, ref)
  if not time or (why == 'due' and tonumber(time) > now) then return {0, state} end
  redis.call('ZREM', due, ref)
  if state ~= 'queued' then return {0, state} end
end
send(ref, now, queued, chat, message)
return {1}
