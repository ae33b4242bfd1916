--[[
  Renews the leases of a worker's running tasks of one shard, as long as they are still its own.

  KEYS[1]  zset    ledger: leased
  ARGV[1]  int ms  the lease
  ARGV[2]  str     ref/attempt, up to 1,000 of them

  RETURNS  the ones that are no longer leased
]]
--- include clock
local leased = KEYS[1]
local lease = tonumber(ARGV[1])
local now = now_ms(ARGV[#ARGV])

local gone = {}
for i = 2, #ARGV - 1 do
  if redis.call('ZSCORE', leased, ARGV[i]) then
    redis.call('ZADD', leased, now + lease, ARGV[i])
  else
    gone[#gone + 1] = ARGV[i]
  end
end
return gone
