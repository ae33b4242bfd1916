-- A breaker: the calls of a window in ten buckets; g its generation, u until when it is open (none: closed), n how often it opened in a
-- row, o since when it is not closed, z when it closed, k good probes, r failures in a row. A time too far ahead can only be a clock's jump.
local BUCKETS = 10
local LONGEST_LEASE, LONGEST_ALONE = 7200000, 600000

-- Returns the calls, failures and slow calls of the window, and the present bucket's field, number, calls, failures, slow calls.
local function breaker_window(breaker, window, now)
  local present = math.floor(now / (window / BUCKETS))
  local mine = present % BUCKETS
  local kept = redis.call('HMGET', breaker, 'b0', 'b1', 'b2', 'b3', 'b4', 'b5', 'b6', 'b7', 'b8', 'b9')
  local sums, bucket = {0, 0, 0}, {'b' .. mine, present, 0, 0, 0}
  for n = 1, BUCKETS do
    local at, calls, failures, slow = string.match(kept[n] or '', '^(%d+) (%d+) (%d+) (%d+)$')
    at = tonumber(at)
    if at and at > present - BUCKETS and at <= present then
      sums = {sums[1] + calls, sums[2] + failures, sums[3] + slow}
      if at == present then bucket = {'b' .. mine, present, tonumber(calls), tonumber(failures), tonumber(slow)} end
    end
  end
  return sums, bucket
end

-- Returns 0 closed, 1 half-open, 2 open, and for how long it will be open, ms.
local function breaker_state(open_until, longest, now)
  if open_until == 0 then return 0, 0 end
  if open_until > now and open_until <= now + longest then return 2, open_until - now end
  return 1, 0
end

local function leases_standing(leases, now)
  return redis.call('ZCOUNT', leases, string.format('(%.0f', now), string.format('%.0f', now + LONGEST_LEASE))
end

-- Returns for how long the lease stands that ends first, ms; there must be one.
local function leases_first(leases, now)
  return tonumber(redis.call('ZRANGEBYSCORE', leases, string.format('(%.0f', now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]) - now
end

local function lease_stands(leases, token, now)
  local ends = tonumber(redis.call('ZSCORE', leases, token) or 0)
  return ends > now and ends <= now + LONGEST_LEASE
end

-- Takes up to 32 leases away that lapsed, where not all of them stand.
local function leases_drop(leases, standing, now)
  if redis.call('ZCARD', leases) == standing then return end
  for _, range in ipairs({{'-inf', string.format('%.0f', now)}, {string.format('(%.0f', now + LONGEST_LEASE), '+inf'}}) do
    local gone = redis.call('ZRANGEBYSCORE', leases, range[1], range[2], 'LIMIT', 0, 32)
    if #gone > 0 then redis.call('ZREM', leases, unpack(gone)) end
  end
end

-- Returns for how long the provider asked to be left alone, ms.
local function alone_for(cool, now)
  local left = tonumber(redis.call('GET', cool) or 0) - now
  return left <= LONGEST_ALONE and math.max(0, left) or 0
end
