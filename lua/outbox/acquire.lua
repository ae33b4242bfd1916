--[[
  Makes the caller the one drainer of an outbox; takes the kick flag away first, so that whatever is added from now on asks again.

  KEYS[1]  string  the drainer's lease
  KEYS[2]  string  a drain has been asked for
  ARGV[1]  str     token of the caller
  ARGV[2]  int ms  the lease

  RETURNS  {1} it is the caller, {0} it is another
]]
local lease, kick = unpack(KEYS)
local token, ttl = ARGV[1], tonumber(ARGV[2])

local owner = redis.call('GET', lease)
if owner and owner ~= token then return {0} end
redis.call('SET', lease, token, 'PX', ttl)
redis.call('DEL', kick)
return {1}
