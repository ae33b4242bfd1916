--[[
  Raises what a running task has reserved of its budgets, all or nothing.

  KEYS[1]  hash    the task's record
  KEYS[2]  hash    its budgets' months, each followed by the set of what is reserved of it
  ARGV[1]  str     the task's reference
  ARGV[2]  str     attempt
  ARGV[3]  int     what it is to have reserved, nano-USD
  ARGV[4]  str     the day of the month that it was admitted on, two digits

  RETURNS  {1, reserved}, {0, number of the budget that does not hold it}, {-1} the task is no longer this attempt's,
           {-2, numbers of the budgets that are to be seeded first ...}
]]
--- include clock
--- include budget
local task, tail = KEYS[1], {unpack(KEYS, 2)}
local ref, attempt, wanted, dd = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local now = now_ms(ARGV[#ARGV])

local record = redis.call('HMGET', task, 'state', 'attempt', 'reserved', 'deadline')
if record[1] ~= 'in_progress' or record[2] ~= attempt then return {-1} end
local reserved, lapses = tonumber(record[3] or 0), math.max(tonumber(record[4]), now) + 300000
if wanted <= reserved then return {1, reserved} end
local member = ref .. '|' .. nano(reserved) .. '|' .. dd

local budgets, more, missing = {}, {}, {-2}
for i = 1, #tail / 2 do
  budgets[i] = budget_read(tail[2 * i - 1], tail[2 * i], dd, 0, now)
  if not budgets[i] then missing[#missing + 1] = i end
  local until_ms = tonumber(redis.call('ZSCORE', tail[2 * i], member) or 0)
  more[i] = until_ms > now and wanted - reserved or wanted
end
if #missing > 1 then return missing end
for i, budget in ipairs(budgets) do
  if budget_short(budget, more[i], budget.day_limit, budget.month_limit) then return {0, i} end
end
for i, budget in ipairs(budgets) do
  local hash, open = tail[2 * i - 1], tail[2 * i]
  budget_reserve(hash, open, ref, wanted, more[i], dd, lapses) -- first: what begins with a removal is not refused without memory
  budget_give_back(hash, open, budget.lapsed)
  redis.call('ZREM', open, member)
end
redis.call('HSET', task, 'reserved', nano(wanted))
return {1, wanted}
