--[[
  Ends a task, once: settles its reservations with what was really used, keeps the result, appends both sides to the dialog, adds the
  history row, leaves the ledger, lets the next ones in and wakes the waiters. A cancelled task that was running is settled by it.

  KEYS[1]  hash    the task's record
  KEYS[2]  set     the task's waiters
  KEYS[3]  string  the day's counter
  KEYS[4]  zset    the day's reservations
  KEYS[5]  string  tokens a minute
  KEYS[6]  zset    the user's open tasks
  KEYS[7]  zset    the user's window
  KEYS[8]  list    what his window holds back
  KEYS[9]  zset    the bot's window
  KEYS[10] list    what its window holds back
  KEYS[11] zset    ledger: queued
  KEYS[12] zset    ledger: leased
  KEYS[13] zset    ledger: waiting
  KEYS[14] zset    ledger: due
  KEYS[15] zset    ledger: deadlines
  KEYS[16] stream  history outbox
  KEYS[17] string  history outbox: a drain has been asked for
  KEYS[18] list    Celery's chat queue
  KEYS[19] list    Celery's history queue
  KEYS[20] hash    the dialog's header
  KEYS[21] list    its messages
  KEYS[22] hash    its message ids
  KEYS[23] stream  dialogs outbox
  KEYS[24] string  dialogs outbox: a drain has been asked for
  KEYS[25] zset    the bot's dialogs that are here
  KEYS[26] zset    those that PostgreSQL does not have as they are
  KEYS[27] zset    the dialog's lane: its task that is under way
  KEYS[28] list    what the lane holds back
  KEYS[29] stream  events outbox
  KEYS[30] string  events outbox: a drain has been asked for
  KEYS[31] stream  publish outbox
  KEYS[32] string  publish outbox: a drain has been asked for
  KEYS[33] list    Celery's analytics queue
  KEYS[34] hash    the delivery to the task's webhook
  KEYS[35] zset    ledger: deliveries
  KEYS[36] stream  hooks outbox
  KEYS[37] string  hooks outbox: a drain has been asked for
  KEYS[38] list    Celery's webhooks queue
  KEYS[39] hash    of each budget the month, followed by the set of what is reserved; then what alerts need (`keys` in includes/alert)
  ARGV[1]  str     the task's reference
  ARGV[2]  str     what it must be: in_progress (by this attempt), queued, or lapsed (its lease ran out)
  ARGV[3]  str     attempt
  ARGV[4]  str     what it becomes: completed, failed or cancelled
  ARGV[5]  int     1 when it counts against the day
  ARGV[6]  int     tokens a minute, 0 for no limit
  ARGV[7]  int     tokens used, less those reserved
  ARGV[8]  int     the user's window, 0 for none
  ARGV[9]  int     the bot's window, 0 for none
  ARGV[10] str     message for the chat queue with ~ref~ in it, '' when the caller publishes
  ARGV[11] str     message that asks for a drain of history, '' when the caller publishes
  ARGV[12] str     the same of dialogs
  ARGV[13] json    the final history row
  ARGV[14] str     the dialog's reference
  ARGV[15] int     how many messages a dialog keeps here
  ARGV[16] int ms  how long an idle dialog stays here
  ARGV[17] int     0 when PostgreSQL is not to have its messages
  ARGV[18] json    the event of this end, but for what the record knows (times, session)
  ARGV[19] str     message that asks for a drain of events, '' when the caller publishes
  ARGV[20] int     1 when a broker carries events
  ARGV[21] str     message that asks for a drain of what is to be published
  ARGV[22] str     the task's webhook, '' for none
  ARGV[23] int ms  for how long its delivery is tried; the records stay an hour longer
  ARGV[24] str     message for the webhooks queue with ~ref~ in it, '' when the caller publishes
  ARGV[25] str     message that asks for a drain of hooks
  ARGV[26] json    budgets, '' for none: reserved, cost (-1: what was reserved), dd, scopes, and as in includes/alert
  ARGV[27] int     n: values that follow for the dialog (mid, role, tokens, metadata, body of each message)
  ARGV[28] str     those n values, then further fields of the record, name and value in turn

  RETURNS  {1, now ms, ref that is next in the lane or '', 2 n: values that follow for alerts (percent and reference of each),
            refs that were let in ...}, {0, state} it was ended otherwise, {-1} there is no such task (its budgets have its cost),
           {2} it was cancelled while it ran: end it as cancelled, with what was used, {-5} the dialog is not here or torn: load it and come again
]]
--- include clock
--- include queue
--- include windows
--- include gcra
--- include outbox
--- include events
--- include hook
--- include day
--- include budget
--- include alert
--- include dialog
--- include dialog_write
local task, waiters, day, day_open, tokens, running, user_window, user_held, bot_window, bot_held, queued, leased, waiting, due, deadlines,
  outbox, kick, chat, history, head, messages, ids, dialogs_outbox, dialogs_kick, index, dirty, lane, lane_held, events, events_kick,
  published, published_kick, analytics, hook, hooks, hooks_outbox, hooks_kick, webhooks = unpack(KEYS)
local ref, expected, attempt, becomes, counted = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5] == '1'
local token_limit, token_delta, user_size, bot_size = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local message, drain, dialogs_drain, row = ARGV[10], ARGV[11], ARGV[12], ARGV[13]
local dialog_ref, keep, dialog_ttl, lasting, n = ARGV[14], tonumber(ARGV[15]), tonumber(ARGV[16]), ARGV[17] == '1', tonumber(ARGV[27])
local event = ARGV[18]
local url, window, deliver, hooks_drain = ARGV[22], tonumber(ARGV[23]), ARGV[24], ARGV[25]
local to = {events = events, events_kick = events_kick, published = published, published_kick = published_kick, list = analytics,
            drain = ARGV[19], publishes = ARGV[20] == '1', publish_drain = ARGV[21]}
local now = now_ms(ARGV[#ARGV])
local by, months = nil, nil
if ARGV[26] ~= '' then
  by, months = cjson.decode(ARGV[26]), {unpack(KEYS, 39)}
  by.keys = {unpack(months, 2 * #by.scopes + 1)}
end
local function settle_budgets(reserved, logged)
  local cost = by.cost >= 0 and by.cost or reserved
  for i, scope in ipairs(by.scopes) do
    budget_settle(months[2 * i - 1], months[2 * i], ref, reserved, by.dd, cost, now, logged)
    alert_check(to, by, scope, months[2 * i - 1], by.dd, now)
  end
end

local record = redis.call('HMGET', task, 'state', 'attempt', 'settled', 'created', 'session', 'counts', 'bot', 'reserved')
local state, mine, created, session, counts = record[1], record[2] == attempt, record[4], record[5], record[6] == '1'
if not state then
  if by then settle_budgets(by.reserved, false) end
  return {-1}
end
local lease = ref .. '/' .. attempt
local settles = state == 'cancelled' and record[3] == '0' and mine
if settles and becomes ~= 'cancelled' then return {2} end
if expected == 'queued' then
  if state ~= 'queued' then return {0, state} end
else
  if not settles and not (state == 'in_progress' and mine) then return {0, state} end
  if expected == 'lapsed' and tonumber(redis.call('ZSCORE', leased, lease) or 0) > now then return {0, state} end
end
local dialog, flat = nil, {}
if n > 0 and not settles then
  dialog = dialog_read(head, messages, ids)
  if not dialog then return {-5} end
  for i = 28, 27 + n do flat[#flat + 1] = ARGV[i] end
end

if settles then
  redis.call('HSET', task, 'settled', '1', unpack(ARGV, 28 + n, #ARGV - 1))
else
  redis.call('HSET', task, 'state', becomes, 'settled', '1', 'finished', now, unpack(ARGV, 28 + n, #ARGV - 1))
end
redis.call('HDEL', task, 'request')
redis.call('PEXPIRE', task, url == '' and 86400000 or window + 3600000)
redis.call('ZREM', queued, ref)
redis.call('ZREM', leased, lease)
redis.call('ZREM', due, ref)
redis.call('ZREM', deadlines, ref)
if redis.call('ZREM', waiting, ref) == 1 then
  redis.call('LREM', user_held, 0, ref)
  redis.call('LREM', bot_held, 0, ref)
  redis.call('LREM', lane_held, 0, ref)
end
if counts then day_settle(day, day_open, ref, counted, now) end
if by then settle_budgets(tonumber(record[8] or by.reserved), true) end
if token_limit > 0 and token_delta ~= 0 then
  local tat = gcra_read(tokens, now * 1000) + math.floor(token_delta * PERIOD_US / token_limit)
  gcra_write(tokens, math.max(tat, now * 1000), now * 1000)
end
redis.call('ZREM', running, ref)

redis.call('ZREM', lane, ref)
local told = by and by.told or {}
local result = {1, now, redis.call('LINDEX', lane_held, -1) or '', #told}
for _, value in ipairs(told) do result[#result + 1] = value end
local function pass(next_ref)
  redis.call('ZREM', waiting, next_ref)
  send(next_ref, now, queued, chat, message)
  result[#result + 1] = next_ref
end
redis.call('ZREM', bot_window, ref)
redis.call('ZREM', user_window, ref)
refill(bot_window, bot_size, bot_held, deadlines, now, pass)
refill(user_window, user_size, user_held, deadlines, now, function(next_ref)
  if has_room(bot_window, bot_size, now) then
    occupy(bot_window, bot_size, next_ref, redis.call('ZSCORE', deadlines, next_ref) or now)
    pass(next_ref)
  else
    hold(bot_held, next_ref)
  end
end)

if dialog and dialog.st == 'active' then
  local first, packed = dialog_append(dialog, head, messages, ids, now, keep, lasting, flat)
  if #packed > 0 then
    dialog_touch(dialog, {head, messages, ids}, index, dirty, dialog_ref, now, dialog_ttl)
    dialog_tell(dialog, dialogs_outbox, dialogs_kick, history, dialogs_drain, dialog_ref, record[7], now, first, packed, lasting)
  end
end
outbox_add(outbox, kick, history, drain, 'ref', ref, 'at', created, 'session', session, 'row', row, 'end', now)
event_add(to, 'event', event, 'ref', ref, 'at', created, 'session', session, 'end', now)
if url ~= '' then
  redis.call('HSET', hook, 'bot', record[7], 'url', url, 'type', 'task.' .. becomes, 'state', 'pending', 'attempt', 0, 'created', now,
             'due', now, 'until', now + window)
  redis.call('PEXPIRE', hook, window + 3600000)
  send(ref, now + 20000, hooks, webhooks, deliver) -- looked at then, should the message be lost
  hook_tell(hook, hooks_outbox, hooks_kick, webhooks, hooks_drain, ref, now, {})
end
for _, channel in ipairs(redis.call('SMEMBERS', waiters)) do redis.call('PUBLISH', channel, ref) end
redis.call('DEL', waiters)
return result
