--[[
  Lets a call through to a provider, all or nothing: its breaker is closed or wants a probe, its bulkhead has room, its requests and tokens
  a minute hold one more, and it did not ask to be left alone. Who comes again with the same token is told the same.

  KEYS[1]  zset    the provider's calls under way
  KEYS[2]  string  its requests a minute
  KEYS[3]  string  its tokens a minute
  KEYS[4]  string  until when it asked to be left alone
  KEYS[5]  hash    the model's breaker
  KEYS[6]  zset    its probes
  ARGV[1]  str     token of the call
  ARGV[2]  int ms  its lease
  ARGV[3]  int     at most so many calls at once, 0 any number
  ARGV[4]  int     requests a minute, 0 any number
  ARGV[5]  int     tokens a minute, 0 any number
  ARGV[6]  int     tokens that it is thought to use
  ARGV[7]  int     at most so many probes at once
  ARGV[8]  int ms  a breaker is never open for longer

  RETURNS  {1, generation, 1 a probe, p95 of its successes ms or 0}, or {0, 1 open, 2 full, 3 limited; when to ask again ms}
]]
--- include clock
--- include gcra
--- include breaker
local flight, rpm, tpm, cool, breaker, probes = unpack(KEYS)
local token, lease, most = ARGV[1], math.min(tonumber(ARGV[2]), LONGEST_LEASE), tonumber(ARGV[3])
local rpm_limit, tpm_limit, tokens = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local most_probes, longest_open = tonumber(ARGV[7]), tonumber(ARGV[8])
local now = now_ms(ARGV[#ARGV])
local now_us = now * 1000
local BUSY, DAY = 500, 86400000

local known = redis.call('HMGET', breaker, 'g', 'u', 'p95')
local generation, open_until, p95 = tonumber(known[1] or 0), tonumber(known[2] or 0), tonumber(known[3] or 0)
if lease_stands(flight, token, now) then
  return {1, generation, lease_stands(probes, token, now) and 1 or 0, p95}
end

local why, wait = 0, 0
local function refuse(reason, ms)
  if ms > wait then why, wait = reason, ms end
end
local state, opens_again = breaker_state(open_until, longest_open, now)
local probing = state == 1 and leases_standing(probes, now) or 0
if state == 2 then
  refuse(1, opens_again)
elseif probing >= most_probes then
  refuse(1, math.min(BUSY, leases_first(probes, now)))
end
refuse(3, alone_for(cool, now))
local rpm_tat, tpm_tat, wait_us = now_us, now_us, 0
if rpm_limit > 0 then
  rpm_tat, wait_us = gcra_ask(rpm, rpm_limit, 1, now_us)
  refuse(3, math.ceil(wait_us / 1000))
end
if tpm_limit > 0 then
  tpm_tat, wait_us = gcra_ask(tpm, tpm_limit, tokens, now_us)
  refuse(3, math.ceil(wait_us / 1000))
end
local running = leases_standing(flight, now)
if most > 0 and running >= most then refuse(2, math.min(BUSY, leases_first(flight, now))) end
if why > 0 then return {0, why, wait} end

redis.call('ZADD', flight, now + lease, token)
redis.call('PEXPIRE', flight, DAY)
leases_drop(flight, running + 1, now)
if state == 1 then
  redis.call('ZADD', probes, now + lease, token)
  redis.call('PEXPIRE', probes, DAY)
  leases_drop(probes, probing + 1, now)
end
if rpm_limit > 0 then gcra_write(rpm, rpm_tat, now_us) end
if tpm_limit > 0 then gcra_write(tpm, tpm_tat, now_us) end
return {1, generation, state, p95}
