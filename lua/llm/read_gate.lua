--[[
  Tells how it stands with a provider and some of its models; changes nothing.

  KEYS[1]  zset    the provider's calls under way
  KEYS[2]  string  until when it asked to be left alone
  KEYS[3]  hash    a model's breaker; those of others follow
  ARGV[1]  int ms  the breakers' window
  ARGV[2]  int ms  a breaker is never open for longer

  RETURNS  {calls under way, left alone for ms}, and of each model: 0 closed, 1 half-open, 2 open; calls, failures and slow calls of the
           window; open for ms; p50 and p95 of its successes ms
]]
--- include clock
--- include breaker
local flight, cool = unpack(KEYS)
local window, longest_open = tonumber(ARGV[1]), tonumber(ARGV[2])
local now = now_ms(ARGV[#ARGV])

local running = leases_standing(flight, now)
local told = {running, alone_for(cool, now)}
for _, breaker in ipairs({unpack(KEYS, 3)}) do
  local known = redis.call('HMGET', breaker, 'u', 'p50', 'p95')
  local state, opens_again = breaker_state(tonumber(known[1] or 0), longest_open, now)
  local sums = breaker_window(breaker, window, now)
  for _, value in ipairs({state, sums[1], sums[2], sums[3], opens_again, tonumber(known[2] or 0), tonumber(known[3] or 0)}) do
    table.insert(told, value)
  end
end
return told
