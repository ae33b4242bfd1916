-- The day's count is a counter of what counts and a set of what is reserved. Where the counter is missing (Redis lost it), an end
-- leaves a mark in the set ('!' counted, '-' not), so that seed_user, which may have read before that end, counts each task once.
local function day_settle(day, open, ref, counted, now)
  redis.call('ZREM', open, ref)
  if redis.call('EXISTS', day) == 0 then
    redis.call('ZADD', open, now + 259200000, (counted and '!' or '-') .. ref)
    redis.call('PEXPIRE', open, 259200000)
  elseif counted then
    redis.call('INCR', day)
  end
end

local function day_used(day, open, now)
  local counted = redis.call('GET', day)
  if not counted then return nil end
  return tonumber(counted) + redis.call('ZCOUNT', open, '(' .. string.format('%.0f', now), '+inf')
end
