--[[
  Tells how a budget stands, and changes nothing that counts.

  KEYS[1]  hash    the budget's month
  KEYS[2]  zset    what is reserved
  ARGV[1]  str     the day of the month, two digits
  ARGV[2]  int ms  since when the budget is to have been kept

  RETURNS  {1, spent on the day, reserved, spent in the month, reserved} nano-USD, {-2} seed first
]]
--- include clock
--- include budget
local hash, open = unpack(KEYS)
local dd, since = ARGV[1], tonumber(ARGV[2])
local now = now_ms(ARGV[#ARGV])

local budget = budget_read(hash, open, dd, since, now)
if not budget then return {-2} end
return {1, budget.day, budget.day_reserved, budget.month, budget.month_reserved}
