-- Tells of a budget of which `level` percent are spent: an event, and where the bot has named a receiver a message for that one.
-- `by` is what a call brings along: `refs`, the references of alerts that may come of it, `event`, `bot`, `who`, `resets`; with a
-- receiver `url`, `keys` (ledger, outbox, its kick, Celery's list, then a hash for each reference), `tried`, `deliver`, `drain`.
-- `by.told` gets level and reference of each in turn. Needs `queue`, `events` and `hook`.
local function usd(amount)
  return string.format('%.0f.%09.0f0', math.floor(amount / 1e9), amount % 1e9)
end

local function alert_tell(to, by, scope, period, level, limit, spent, now)
  by.told = by.told or {}
  local n = #by.told / 2 + 1
  local ref, at = by.refs[n], string.format('%.0f', now)
  local facts = {scope = scope, period = period, percent = level, limitUsd = usd(limit), spentUsd = usd(spent), resetsAt = by.resets[period]}
  facts[scope] = by.who[scope]
  event_add(to, 'event', by.event, 'ref', ref, 'at', at, 'facts', cjson.encode(facts))
  by.told[2 * n - 1], by.told[2 * n] = level, ref
  if by.url == '' then return end
  local hooks, outbox, kick, list = unpack(by.keys)
  local hook = by.keys[4 + n]
  local payload = {scope = scope, period = period, percent = level, limit_usd = usd(limit), spent_usd = usd(spent),
                   resets_at = by.resets[period], bot_id = by.bot}
  payload[scope] = by.who[scope]
  redis.call('HSET', hook, 'bot', by.bot, 'url', by.url, 'type', 'budget.alert', 'state', 'pending', 'attempt', 0, 'created', at, 'due', at,
             'until', string.format('%.0f', now + by.tried), 'payload', cjson.encode(payload))
  redis.call('PEXPIRE', hook, by.tried + 3600000)
  send(ref, now + 20000, hooks, list, by.deliver)
  hook_tell(hook, outbox, kick, list, by.drain, ref, now, {})
end

-- Tells of what an end has brought a budget to: of the highest step alone, and of each once.
local function alert_check(to, by, scope, hash, dd, now)
  local found = redis.call('HMGET', hash, 'm', 'ml', 'am', dd, 'dl', 'a' .. dd)
  for i, period in ipairs({'month', 'day'}) do
    local spent, limit, told = tonumber(found[3 * i - 2] or 0), tonumber(found[3 * i - 1] or -1), tonumber(found[3 * i] or 0)
    local level = budget_level(spent, limit)
    if level > told then
      redis.call('HSET', hash, period == 'month' and 'am' or 'a' .. dd, level)
      alert_tell(to, by, scope, period, level, limit, spent, now)
    end
  end
end
