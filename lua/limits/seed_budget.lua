--[[
  Gives a budget's month back to Redis as PostgreSQL and the outbox know it; what is there already stays.

  KEYS[1]  hash    the budget's month
  KEYS[2]  zset    what is reserved
  KEYS[3]  string  when the shard's store was first used
  ARGV[1]  int ms  since when the budget is kept
  ARGV[2]  str     the day of the month, two digits
  ARGV[3]  int     the day's limit, -1 for none
  ARGV[4]  int     the month's limit, -1 for none
  ARGV[5]  int ms  until when an open request stays reserved
  ARGV[6]  int     n: values that follow for the days
  ARGV[7]  str     those n values, day and what was spent on it in turn; then reference, amount and day of each open request in turn

  RETURNS  {1} it was made, {0} it was there
]]
--- include clock
--- include budget
local hash, open, born = unpack(KEYS)
local since, today, day_limit, month_limit = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local lapse, n = tonumber(ARGV[5]), tonumber(ARGV[6])
local now = now_ms(ARGV[#ARGV])

redis.call('SET', born, nano(now), 'NX')
local known = redis.call('HGET', hash, 'g')
if known and tonumber(known) >= since then return {0} end

local spent, reserved, month, month_reserved = {}, {}, 0, 0
local function spend(day, amount)
  spent[day], month = (spent[day] or 0) + amount, month + amount
end
local function reserve(day, amount)
  reserved[day], month_reserved = (reserved[day] or 0) + amount, month_reserved + amount
end
local settled, held, ended = {}, {}, {}
for _, member in ipairs(redis.call('ZRANGE', open, 0, 9999)) do
  local mark, ref, amount, day = string.match(member, '^([!?]?)(%x+)|(%d+)|(%d+)$')
  if mark == '!' then
    ended[ref] = {day, tonumber(amount)}
    redis.call('ZREM', open, member)
  elseif mark == '?' then
    settled[ref] = true
    spend(day, tonumber(amount))
  elseif mark then
    held[ref] = member
    reserve(day, tonumber(amount))
  end
end
for i = 7, 6 + n, 2 do spend(ARGV[i], tonumber(ARGV[i + 1])) end
for i = 7 + n, #ARGV - 1, 3 do
  local ref, amount, day = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2]
  if ended[ref] then
    spend(ended[ref][1], ended[ref][2])
  elseif not settled[ref] then
    local member = held[ref] or ref .. '|' .. nano(amount) .. '|' .. day
    if not held[ref] then reserve(day, amount) end
    if tonumber(redis.call('ZSCORE', open, member) or 0) < now + lapse then redis.call('ZADD', open, nano(now + lapse), member) end
  end
end
redis.call('PEXPIRE', open, BUDGET_KEPT)
redis.call('DEL', hash)
redis.call('HSET', hash, 'g', nano(since), 'm', nano(month), 'mr', nano(month_reserved), 'ml', nano(month_limit), 'dl', nano(day_limit),
           'am', budget_level(month, month_limit), 'a' .. today, budget_level(spent[today] or 0, day_limit))
for day, amount in pairs(spent) do redis.call('HSET', hash, day, nano(amount)) end
for day, amount in pairs(reserved) do redis.call('HSET', hash, day .. 'r', nano(amount)) end
redis.call('PEXPIRE', hash, BUDGET_KEPT)
return {1}
