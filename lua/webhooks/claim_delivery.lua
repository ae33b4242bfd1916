--[[
  Gives a delivery that is due to a worker, for one attempt; puts it off where its receiver is down, or has enough of them in hand.
  An attempt whose worker died is written down as such.

  KEYS[1]  hash    the delivery
  KEYS[2]  zset    ledger: deliveries
  KEYS[3]  zset    the bot's attempts under way
  KEYS[4]  hash    the receiver's breaker
  KEYS[5]  stream  hooks outbox
  KEYS[6]  string  hooks outbox: a drain has been asked for
  KEYS[7]  list    Celery's webhooks queue
  ARGV[1]  str     the task's reference
  ARGV[2]  int ms  how long the attempt may take
  ARGV[3]  str     the receiver: a hash of scheme, host and port
  ARGV[4]  int     at most so many attempts at once with a receiver
  ARGV[5]  int     at most so many with all receivers of the bot
  ARGV[6]  int     failures in a row after which a receiver is down
  ARGV[7]  int ms  for how long it is put off
  ARGV[8]  str     message that asks for a drain, '' when the caller publishes

  RETURNS  {1, attempt, now ms, until when it is tried ms}, {0, state} it is not to be tried now, {2, due ms} it was put off,
           {3} it is given up: its time is over, {-1} there is no such delivery
]]
--- include clock
--- include outbox
--- include hook
local hook, ledger, flight, breaker, outbox, kick, list = unpack(KEYS)
local ref, lease, receiver, most, most_of_bot = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local threshold, pause, drain = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]
local now = now_ms(ARGV[#ARGV])

local record = redis.call('HMGET', hook, 'state', 'attempt', 'due', 'until', 'lease')
local state, attempt, due, gives_up, leased = record[1], tonumber(record[2]), tonumber(record[3]), tonumber(record[4]), tonumber(record[5])
if not state then
  redis.call('ZREM', ledger, ref)
  return {-1}
end
if state ~= 'pending' then return {0, state} end
if leased and leased > now then return {0, 'under way'} end
if due > now then return {0, state} end

local told = leased and {'number', attempt, 'tried', leased - lease, 'error', 'The worker that made this attempt died.'} or {}
if now > gives_up and attempt > 0 then
  hook_end(hook, 'failed')
  hook_tell(hook, outbox, kick, list, drain, ref, now, told)
  redis.call('ZREM', ledger, ref)
  return {3}
end

local busy = redis.call('ZRANGEBYSCORE', flight, '(' .. string.format('%.0f', now), '+inf')
local with_receiver = 0
for _, member in ipairs(busy) do
  if string.sub(member, 1, #receiver) == receiver then with_receiver = with_receiver + 1 end
end
local down = redis.call('HMGET', breaker, 'failures', 'until')
local failures, down_until = tonumber(down[1] or 0), tonumber(down[2] or 0)
local put_off = nil
if down_until > now then
  put_off = down_until + pause
elseif #busy >= most_of_bot or with_receiver >= most then
  put_off = now + pause
end
if put_off then
  redis.call('HSET', hook, 'due', put_off)
  redis.call('ZADD', ledger, put_off, ref)
  return {2, put_off}
end

attempt = attempt + 1
redis.call('HSET', hook, 'attempt', attempt, 'lease', now + lease)
redis.call('ZADD', ledger, now + lease, ref)
redis.call('ZADD', flight, now + lease, receiver .. ' ' .. ref)
redis.call('ZREMRANGEBYSCORE', flight, '-inf', now)
redis.call('PEXPIRE', flight, 3600000)
if failures >= threshold then redis.call('HSET', breaker, 'until', now + lease) end -- this one finds out, the others wait for it
if leased then hook_tell(hook, outbox, kick, list, drain, ref, now, told) end
return {1, attempt, now, gives_up}
