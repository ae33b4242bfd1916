-- Hands a task to the broker: the ledger first, then the message, where the queue is this Redis (else the caller publishes).
local function send(ref, now, queued, list, template)
  redis.call('ZADD', queued, now, ref)
  if template ~= '' then
    redis.call('LPUSH', list, (string.gsub(template, '~ref~', ref)))
  end
end
