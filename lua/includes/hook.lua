-- Ends a delivery; what is left of it stays for an hour, so that a late answer or a redelivery finds how often it was tried.
local function hook_end(hook, state)
  redis.call('HSET', hook, 'state', state)
  redis.call('PEXPIRE', hook, 3600000)
end

-- Tells the log how a delivery stands; `told` are name and value in turn of an attempt, or nothing. Needs `outbox`.
local function hook_tell(hook, outbox, kick, list, drain, ref, now, told)
  local known = redis.call('HMGET', hook, 'bot', 'url', 'type', 'state', 'attempt', 'created', 'due', 'payload')
  outbox_add(outbox, kick, list, drain, 'ref', ref, 'bot', known[1], 'url', known[2], 'type', known[3], 'state', known[4],
             'attempts', known[5], 'created', known[6], 'next', known[4] == 'pending' and known[7] or '', 'payload', known[8] or '',
             'at', now, unpack(told))
end
