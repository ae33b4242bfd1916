-- A budget's month (a bot's, a key's, a user's) is a hash in nano-USD: m and mr spent and reserved in the month, <dd> and <dd>r on a day,
-- ml and dl the limits that were last admitted by, am and a<dd> the alert that was told of, g since when it is kept; and a set of what
-- is reserved, `ref|amount|dd` -> when it lapses. Where the hash is missing (Redis lost it) an end leaves a mark in the set: `!` before
-- the reference where the history is told of that end, `?` where it is not; so that seed_budget counts each task once.
local BUDGET_KEPT = 6048000000

-- Zero is added, since HINCRBY takes no -0.
local function nano(amount)
  return string.format('%.0f', amount + 0)
end

-- Returns how a budget stands with what has lapsed given back, nil where it is to be seeded: one kept for less long than it should be
-- has not seen everything, and is taken away.
local function budget_read(hash, open, dd, since, now)
  local found = redis.call('HMGET', hash, 'm', 'mr', dd, dd .. 'r', 'ml', 'dl', 'am', 'a' .. dd, 'g')
  if not found[1] then return nil end
  if tonumber(found[9]) < since then
    redis.call('DEL', hash)
    return nil
  end
  local budget = {
    month = tonumber(found[1]), month_reserved = tonumber(found[2] or 0), day = tonumber(found[3] or 0),
    day_reserved = tonumber(found[4] or 0), month_limit = tonumber(found[5] or -1), day_limit = tonumber(found[6] or -1),
    month_told = tonumber(found[7] or 0), day_told = tonumber(found[8] or 0),
  }
  budget.lapsed = redis.call('ZRANGEBYSCORE', open, '-inf', nano(now), 'LIMIT', 0, 32)
  for _, member in ipairs(budget.lapsed) do
    local amount, day = string.match(member, '^%x+|(%d+)|(%d+)$')
    if amount then
      budget.month_reserved = budget.month_reserved - tonumber(amount)
      if day == dd then budget.day_reserved = budget.day_reserved - tonumber(amount) end
    end
  end
  return budget
end

-- Returns the period whose limit does not hold so much more, 'month' before 'day'; nil where both do.
local function budget_short(budget, amount, day_limit, month_limit)
  if month_limit >= 0 and budget.month + budget.month_reserved + amount > month_limit then return 'month' end
  if day_limit >= 0 and budget.day + budget.day_reserved + amount > day_limit then return 'day' end
  return nil
end

local function budget_give_back(hash, open, lapsed)
  for _, member in ipairs(lapsed) do
    local amount, day = string.match(member, '^%x+|(%d+)|(%d+)$')
    redis.call('ZREM', open, member)
    if amount then
      redis.call('HINCRBY', hash, 'mr', nano(-tonumber(amount)))
      redis.call('HINCRBY', hash, day .. 'r', nano(-tonumber(amount)))
    end
  end
end

-- Reserves `more`, so that the task has `amount` in all.
local function budget_reserve(hash, open, ref, amount, more, dd, lapses)
  redis.call('ZADD', open, nano(lapses), ref .. '|' .. nano(amount) .. '|' .. dd)
  redis.call('PEXPIRE', open, BUDGET_KEPT)
  redis.call('HINCRBY', hash, 'mr', nano(more))
  redis.call('HINCRBY', hash, dd .. 'r', nano(more))
end

-- Ends a task's reservation with what it cost. `logged`: the history is told of it, and it is done once; else a mark sees to that.
local function budget_settle(hash, open, ref, reserved, dd, cost, now, logged)
  local member = ref .. '|' .. nano(reserved) .. '|' .. dd
  local held = redis.call('ZSCORE', open, member)
  local here, fresh = redis.call('EXISTS', hash) == 1, 1
  if not (here and logged) then
    fresh = redis.call('ZADD', open, nano(now + BUDGET_KEPT), (logged and '!' or '?') .. ref .. '|' .. nano(cost) .. '|' .. dd)
    redis.call('PEXPIRE', open, BUDGET_KEPT)
  end
  if here and fresh == 1 and cost > 0 then
    redis.call('HINCRBY', hash, 'm', nano(cost))
    redis.call('HINCRBY', hash, dd, nano(cost))
  end
  if here and held then
    redis.call('HINCRBY', hash, 'mr', nano(-reserved))
    redis.call('HINCRBY', hash, dd .. 'r', nano(-reserved))
  end
  redis.call('ZREM', open, member)
end

-- Returns how much of a limit is spent, of 0, 50, 80 and 100 percent.
local function budget_level(spent, limit)
  local level = 0
  for _, each in ipairs({50, 80, 100}) do
    if limit > 0 and spent >= limit * each / 100 then level = each end
  end
  return level
end

-- Notes the limits. A limit that was raised is told of anew.
local function budget_limits(hash, dd, budget, day_limit, month_limit)
  if budget.month_limit ~= month_limit then
    redis.call('HSET', hash, 'ml', nano(month_limit), 'am', math.min(budget.month_told, budget_level(budget.month, month_limit)))
  end
  if budget.day_limit ~= day_limit then
    redis.call('HSET', hash, 'dl', nano(day_limit), 'a' .. dd, math.min(budget.day_told, budget_level(budget.day, day_limit)))
  end
end
