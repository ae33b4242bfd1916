--[[
  Prolongs the lease of a call to a provider; one that lapsed is not given back, since another may have its place.

  KEYS[1]  zset    the provider's calls under way
  KEYS[2]  zset    the probes of the model's breaker
  ARGV[1]  str     token of the call
  ARGV[2]  int ms  the lease from now on

  RETURNS  {1} it stands, {0} it lapsed
]]
--- include clock
--- include breaker
local flight, probes = unpack(KEYS)
local token, lease = ARGV[1], math.min(tonumber(ARGV[2]), LONGEST_LEASE)
local now = now_ms(ARGV[#ARGV])
local DAY = 86400000

if not lease_stands(flight, token, now) then return {0} end
redis.call('ZADD', flight, now + lease, token)
redis.call('PEXPIRE', flight, DAY)
if lease_stands(probes, token, now) then redis.call('ZADD', probes, now + lease, token) end
return {1}
