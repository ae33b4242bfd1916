--[[
  Mends a task that a window has held back for long: puts it into its list again if the list was lost, and fills the windows.

  KEYS[1]  hash    the task's record
  KEYS[2]  zset    ledger: waiting
  KEYS[3]  zset    ledger: queued
  KEYS[4]  zset    ledger: deadlines
  KEYS[5]  zset    the user's window
  KEYS[6]  list    what his window holds back
  KEYS[7]  zset    the bot's window
  KEYS[8]  list    what its window holds back
  KEYS[9]  list    Celery's chat queue
  ARGV[1]  str     the task's reference
  ARGV[2]  int     the user's window, 0 for none
  ARGV[3]  int     the bot's window, 0 for none
  ARGV[4]  str     message for the chat queue with ~ref~ in it, '' when the caller publishes

  RETURNS  the references that were sent
]]
--- include clock
--- include queue
--- include windows
local task, waiting, queued, deadlines, user_window, user_held, bot_window, bot_held, chat = unpack(KEYS)
local ref, user_size, bot_size, message = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local now = now_ms(ARGV[#ARGV])

if not redis.call('ZSCORE', waiting, ref) then return {} end
if redis.call('HGET', task, 'state') ~= 'queued' then
  redis.call('ZREM', waiting, ref)
  return {}
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
