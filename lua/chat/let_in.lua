--[[
  Lets a task in that its dialog's lane held back, or that a window has held back for long: puts it into its list again if the list was
  lost, and fills the windows. A lane is entered by the first in line alone.

  KEYS[1]  hash    the task's record
  KEYS[2]  zset    ledger: waiting
  KEYS[3]  zset    ledger: queued
  KEYS[4]  zset    ledger: deadlines
  KEYS[5]  zset    the user's window
  KEYS[6]  list    what his window holds back
  KEYS[7]  zset    the bot's window
  KEYS[8]  list    what its window holds back
  KEYS[9]  list    Celery's chat queue
  KEYS[10] zset    the dialog's lane
  KEYS[11] list    what the lane holds back
  ARGV[1]  str     the task's reference
  ARGV[2]  int     the user's window, 0 for none
  ARGV[3]  int     the bot's window, 0 for none
  ARGV[4]  int     1 when it has a lane
  ARGV[5]  str     message for the chat queue with ~ref~ in it, '' when the caller publishes

  RETURNS  the references that were sent
]]
--- include clock
--- include queue
--- include windows
local task, waiting, queued, deadlines, user_window, user_held, bot_window, bot_held, chat, lane, lane_held = unpack(KEYS)
local ref, user_size, bot_size, has_lane, message = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4] == '1', ARGV[5]
local now = now_ms(ARGV[#ARGV])

if not redis.call('ZSCORE', waiting, ref) then return {} end
if redis.call('HGET', task, 'state') ~= 'queued' then
  redis.call('ZREM', waiting, ref)
  return {}
end
redis.call('ZADD', waiting, 'XX', now, ref) -- looked at again in 15 s, behind those that were not
if has_lane and not redis.call('ZSCORE', lane, ref) then
  if not redis.call('LPOS', lane_held, ref) then hold(lane_held, ref) end
  local first = redis.call('LINDEX', lane_held, -1)
  for _ = 1, 100 do -- those that are gone stand in nobody's way
    if first == ref or redis.call('ZSCORE', waiting, first) then break end
    redis.call('RPOP', lane_held)
    first = redis.call('LINDEX', lane_held, -1)
  end
  if first ~= ref or not has_room(lane, 1, now) then return {} end
  redis.call('RPOP', lane_held)
  occupy(lane, 1, ref, redis.call('ZSCORE', deadlines, ref) or now)
end
if not redis.call('LPOS', user_held, ref) and not redis.call('LPOS', bot_held, ref) then
  redis.call('RPUSH', user_held, ref)
  redis.call('PEXPIRE', user_held, 86400000)
end
local sent = {}
local function pass(next_ref)
  redis.call('ZREM', waiting, next_ref)
  send(next_ref, now, queued, chat, message)
  sent[#sent + 1] = next_ref
end
refill(user_window, user_size, user_held, deadlines, now, function(next_ref) hold(bot_held, next_ref) end)
refill(bot_window, bot_size, bot_held, deadlines, now, pass)
return sent
