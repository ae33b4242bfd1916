--[[
  Looks for an answer. Where there is none that will do, the caller asks the model for all, or waits for who does: one step.

  KEYS[1]  hash    the answer
  KEYS[2]  hash    the flight: who asks, until when, and how often it came to nothing
  KEYS[3]  zset    who waits for that
  ARGV[1]  str     the caller's task
  ARGV[2]  int     1: a kept answer will do, 0: the caller wants a new one
  ARGV[3]  int ms  how old a kept answer may be, -1: as old as it is
  ARGV[4]  int ms  the lease of who asks

  RETURNS  {2, age in ms, answer} kept, {1} the caller asks, {0, ms} another does and his lease lasts so long, {-1} everybody for himself
]]
--- include clock
local answer, flight, waiting = unpack(KEYS)
local caller, reads, oldest, lease = ARGV[1], ARGV[2] == '1', tonumber(ARGV[3]), tonumber(ARGV[4])
local now = now_ms(ARGV[#ARGV])

if reads then
  local kept = redis.call('HMGET', answer, 'at', 'body')
  local age = kept[1] and math.max(0, now - tonumber(kept[1]))
  if age and (oldest < 0 or age <= oldest) then return {2, age, kept[2]} end
end
local led = redis.call('HMGET', flight, 'who', 'until', 'failed')
if tonumber(led[3] or 0) > 1 then return {-1} end
local left = tonumber(led[2] or 0) - now
if led[1] and led[1] ~= caller and left > 0 then
  if not reads then return {-1} end
  redis.call('ZADD', waiting, now, caller)
  redis.call('PEXPIRE', waiting, 3600000)
  return {0, left}
end
redis.call('HSET', flight, 'who', caller, 'until', string.format('%.0f', now + lease))
redis.call('PEXPIRE', flight, lease + 60000)
redis.call('ZREM', waiting, caller)
return {1}
