--[[
  Sends the deliveries of a shard that are to be looked at: their time has come, their worker died, or their message was lost.
  Each is looked at again later, unless it has been tried until then.

  KEYS[1]  zset    ledger: deliveries
  KEYS[2]  list    Celery's webhooks queue
  ARGV[1]  int     at most so many
  ARGV[2]  int ms  until they are looked at again
  ARGV[3]  str     message for the webhooks queue with ~ref~ in it, '' when the caller publishes
  ARGV[4]  int     messages in the queue from which on nothing is sent: what waits there comes by itself

  RETURNS  the references of those that were sent
]]
--- include clock
local ledger, list = unpack(KEYS)
local most, again, message, deep = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local now = now_ms(ARGV[#ARGV])

if message ~= '' and redis.call('LLEN', list) >= deep then return {} end
local due = redis.call('ZRANGEBYSCORE', ledger, '-inf', now, 'LIMIT', 0, most)
for _, ref in ipairs(due) do
  redis.call('ZADD', ledger, now + again, ref)
  if message ~= '' then redis.call('LPUSH', list, (string.gsub(message, '~ref~', ref))) end
end
return due
