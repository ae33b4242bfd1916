--[[
  Ends a call to a provider, once: frees its place, settles its tokens, and lets the breaker open or close by how it went. What an older
  generation's call has to tell, or one whose lease lapsed, changes no breaker.

  KEYS[1]  zset    the provider's calls under way
  KEYS[2]  string  its tokens a minute
  KEYS[3]  string  until when it asked to be left alone
  KEYS[4]  hash    the model's breaker
  KEYS[5]  zset    its probes
  KEYS[6]  list    how long its latest successes took, ms
  ARGV[1]  str     token of the call
  ARGV[2]  str     ok, failed, limited, or ignored
  ARGV[3]  int ms  how long it took
  ARGV[4]  int     the generation that it began in
  ARGV[5]  int     tokens that it used beyond what was thought, may be less than 0
  ARGV[6]  int     tokens a minute, 0 any number
  ARGV[7]  int ms  for how long the provider asked to be left alone
  ARGV[8]  int ms  the breaker's window
  ARGV[9]  int     calls in it below which no rate counts
  ARGV[10] int     failures in ten thousand calls that open it
  ARGV[11] int     slow calls in ten thousand that open it
  ARGV[12] int ms  a call that takes longer is slow
  ARGV[13] int     failures in a row that open it
  ARGV[14] int ms  for how long it opens at first
  ARGV[15] int ms  for how long at most
  ARGV[16] int     good probes that close it

  RETURNS  {0} it has left or its lease lapsed, or {1, 0 nothing changed, 1 opened, 2 closed, 3 opened anew; calls, failures and slow calls of
           the window; why: 1 failures in a row, 2 failure rate, 3 slow rate, 0; for how long it will be or was open ms}
]]
--- include clock
--- include gcra
--- include breaker
local flight, tpm, cool, breaker, probes, times = unpack(KEYS)
local token, outcome, took, began, over = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local tpm_limit, alone = tonumber(ARGV[6]), math.min(tonumber(ARGV[7]), LONGEST_ALONE)
local window, least, failing, slowing = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11])
local slow_after, row_most, open_first, open_most = tonumber(ARGV[12]), tonumber(ARGV[13]), tonumber(ARGV[14]), tonumber(ARGV[15])
local good_most = tonumber(ARGV[16])
local now = now_ms(ARGV[#ARGV])
local MOST, ENOUGH, EVERY = 100, 20, 10
local kept = 3600000 + open_most

local known = redis.call('HMGET', breaker, 'g', 'u', 'n', 'k', 'r', 'o', 'z')
local generation, open_until, times_open = tonumber(known[1] or 0), tonumber(known[2] or 0), tonumber(known[3] or 0)
local good, row, not_closed, closed = tonumber(known[4] or 0), tonumber(known[5] or 0), tonumber(known[6] or now), tonumber(known[7] or 0)
local stood = lease_stands(flight, token, now)
local probed = open_until > 0 and lease_stands(probes, token, now)
redis.call('ZREM', flight, token)
if open_until > 0 then redis.call('ZREM', probes, token) end
if not stood then return {0} end

if tpm_limit > 0 and over ~= 0 then
  local tat = gcra_read(tpm, now * 1000) + math.floor(over * PERIOD_US / tpm_limit)
  gcra_write(tpm, math.max(tat, now * 1000), now * 1000)
end
if outcome == 'limited' and alone > alone_for(cool, now) then redis.call('SET', cool, now + alone, 'PX', alone) end
if outcome ~= 'ok' and outcome ~= 'failed' then return {1, 0, 0, 0, 0, 0, 0} end

if outcome == 'ok' then
  redis.call('LPUSH', times, took)
  redis.call('LTRIM', times, 0, MOST - 1)
  redis.call('PEXPIRE', times, kept)
  local count = redis.call('HINCRBY', breaker, 'd', 1)
  redis.call('PEXPIRE', breaker, kept)
  if count >= ENOUGH and count % EVERY == 0 then
    local sorted = redis.call('LRANGE', times, 0, MOST - 1)
    for n, value in ipairs(sorted) do sorted[n] = tonumber(value) end
    table.sort(sorted)
    local p50, p95 = sorted[math.ceil(#sorted * 0.5)], sorted[math.ceil(#sorted * 0.95)]
    if #sorted < ENOUGH then p50, p95 = 0, 0 end
    redis.call('HSET', breaker, 'p50', p50, 'p95', p95)
  end
end

if began ~= generation or (open_until > 0 and not probed) then return {1, 0, 0, 0, 0, 0, 0} end
local is_slow = took > slow_after

local function open(since)
  local lasts = math.min(open_most, open_first * 2 ^ math.min(times_open, 20))
  redis.call('HSET', breaker, 'g', math.max(generation + 1, now), 'u', now + lasts, 'n', times_open + 1, 'k', 0, 'r', 0, 'o', since)
  redis.call('HDEL', breaker, 'b0', 'b1', 'b2', 'b3', 'b4', 'b5', 'b6', 'b7', 'b8', 'b9')
  redis.call('PEXPIRE', breaker, kept)
  redis.call('DEL', probes)
  return lasts
end

if open_until > 0 then
  if outcome == 'failed' or is_slow then return {1, 3, 0, 0, 0, 0, open(not_closed)} end
  if good + 1 < good_most then
    redis.call('HSET', breaker, 'k', good + 1)
    return {1, 0, 0, 0, 0, 0, 0}
  end
  redis.call('HSET', breaker, 'g', math.max(generation + 1, now), 'k', 0, 'r', 0, 'z', now)
  redis.call('HDEL', breaker, 'u', 'o')
  redis.call('DEL', probes)
  return {1, 2, 0, 0, 0, 0, now - not_closed}
end

local sums, bucket = breaker_window(breaker, window, now)
local failed, slow = outcome == 'failed' and 1 or 0, is_slow and 1 or 0
local calls, failures, slows = sums[1] + 1, sums[2] + failed, sums[3] + slow
row = failed == 1 and row + 1 or 0
local why = 0
if row >= row_most and failures >= row_most then
  why = 1
elseif calls >= least and failures * 10000 >= failing * calls then
  why = 2
elseif calls >= least and slows * 10000 >= slowing * calls then
  why = 3
end
if why == 0 then
  local told = string.format('%.0f %.0f %.0f %.0f', bucket[2], bucket[3] + 1, bucket[4] + failed, bucket[5] + slow)
  redis.call('HSET', breaker, bucket[1], told, 'r', row)
  if failed == 1 then redis.call('PEXPIRE', breaker, kept) end
  return {1, 0, calls, failures, slows, 0, 0}
end
if now - closed > open_most then times_open = 0 end
return {1, 1, calls, failures, slows, why, open(now)}
