--[[
  Raises a day's counter that is behind the history: Redis came back as it had been a while before. It is never lowered.

  KEYS[1]  string  the day's counter
  KEYS[2]  zset    the day's reservations
  ARGV[1]  int     requests of the day that count, by the history
  ARGV[2]  str     references of those among them that were reserved here: they run again, and are counted when they end

  RETURNS  {by how much it was raised}, {-1} the counter is missing: seed it
]]
local day, day_open = unpack(KEYS)
local counted = tonumber(ARGV[1])

local here = redis.call('GET', day)
if not here then return {-1} end
for i = 2, #ARGV - 1 do
  if redis.call('ZSCORE', day_open, ARGV[i]) then counted = counted - 1 end
end
local behind = counted - tonumber(here)
if behind <= 0 then return {0} end
redis.call('INCRBY', day, behind)
return {behind}
