-- GCRA (generic cell rate algorithm) over a minute, in whole microseconds: a limit of N admits N at once, then one each 60 s / N.
-- None further ahead than two periods is stored; one that is found there can only be a clock's jump, and is forgotten.
local PERIOD_US = 60000000

local function gcra_read(key, now_us)
  local tat = tonumber(redis.call('GET', key) or now_us) or now_us
  if tat < now_us then return now_us end
  if tat > now_us + 2 * PERIOD_US then return now_us end
  return tat
end

-- Returns the new arrival time, and how long to wait for room, us (0 or less: now; -1 with `never`: more than the limit holds).
local function gcra_ask(key, limit, cost, now_us)
  local tat = gcra_read(key, now_us) + math.floor(cost * PERIOD_US / limit)
  return tat, tat - PERIOD_US - now_us
end

local function gcra_write(key, tat, now_us)
  tat = math.min(tat, now_us + 2 * PERIOD_US)
  redis.call('SET', key, string.format('%.0f', tat), 'PX', math.max(1, math.ceil((tat - now_us) / 1000)))
end

-- Returns how much is left, and when all of it is, ms.
local function gcra_left(tat, limit, now_us)
  return math.max(0, math.floor((PERIOD_US - (tat - now_us)) * limit / PERIOD_US)), math.ceil((tat - now_us) / 1000)
end
