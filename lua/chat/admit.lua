--[[
  Admits one request or refuses it, all or nothing: idempotency, every limit, the queue's depth; then the task's record,
  its place in the ledger, the history's pending row and the place in the queue.

  KEYS[1]  hash    the task's record
  KEYS[2]  string  the idempotency key's record
  KEYS[3]  hash    the user's profile: zone, limit
  KEYS[4]  string  the user's session
  KEYS[5]  string  the day's counter
  KEYS[6]  zset    the day's reservations
  KEYS[7]  string  requests a minute
  KEYS[8]  string  tokens a minute
  KEYS[9]  zset    the user's open tasks
  KEYS[10] zset    the user's window
  KEYS[11] list    what his window holds back
  KEYS[12] zset    the bot's window
  KEYS[13] list    what its window holds back
  KEYS[14] zset    ledger: queued
  KEYS[15] zset    ledger: waiting
  KEYS[16] zset    ledger: deadlines
  KEYS[17] stream  history outbox
  KEYS[18] string  history outbox: a drain has been asked for
  KEYS[19] list    Celery's chat queue
  KEYS[20] list    Celery's history queue
  KEYS[21] set     the task's waiters
  KEYS[22] zset    the dialog's lane: its task that is under way
  KEYS[23] list    what the lane holds back
  KEYS[24] string  the refusal that analytics was last told of
  KEYS[25] stream  events outbox
  KEYS[26] string  events outbox: a drain has been asked for
  KEYS[27] stream  publish outbox
  KEYS[28] string  publish outbox: a drain has been asked for
  KEYS[29] list    Celery's analytics queue
  KEYS[30] hash    of each budget the month, followed by the set of what is reserved; then what alerts need (`keys` in includes/alert)
  ARGV[1]  str     the task's reference
  ARGV[2]  str     fingerprint of the body, or '' without an idempotency key
  ARGV[3]  int     1 when a day's limit is kept for the user
  ARGV[4]  str     the user's own zone as the caller knows it, '' for the bot's
  ARGV[5]  int ms  when the local day began
  ARGV[6]  int ms  when it ends
  ARGV[7]  int     requests a day, -1 for no limit
  ARGV[8]  int     requests a minute, 0 for no limit
  ARGV[9]  int     tokens a minute, 0 for no limit
  ARGV[10] int     tokens that this request is thought to use
  ARGV[11] int     open tasks at once, 0 for no limit
  ARGV[12] int     the user's window, 0 for none
  ARGV[13] int     the bot's window, 0 for none
  ARGV[14] int     how deep the queue may be
  ARGV[15] int ms  until the deadline
  ARGV[16] str     the session that the client names, or ''
  ARGV[17] str     name of a new session
  ARGV[18] str     message for the chat queue with ~ref~ in it, '' when the caller publishes
  ARGV[19] str     message that asks for a drain, '' when the caller publishes
  ARGV[20] str     channel of the process that waits, or ''
  ARGV[21] json    the pending history row
  ARGV[22] int     0 without a dialog; when its lane is taken: 1 waits for it, 2 is refused
  ARGV[23] json    the event of a refusal, but for its code, time and id
  ARGV[24] str     message that asks for a drain of events, '' when the caller publishes
  ARGV[25] int     1 when a broker carries events
  ARGV[26] str     message that asks for a drain of what is to be published
  ARGV[27] json    budgets, '' for none: amount, dd, starts, ends, lapses, scopes (name, day's and month's limit, since), and as in
                   includes/alert
  ARGV[28] str     further fields of the record, name and value in turn; dialog '@' is the one of the user's profile

  RETURNS  {1, sent (0 = held back), now ms, used, limit, rate left, rate reset ms, tokens left, tokens reset ms, depth, drain asked},
           {0, 1 depth | 2 day | 3 rate | 4 tokens | 5 open tasks | 6 dialog busy | 7 budget, retry ms, used, limit, rate left, reset,
            tokens left, reset, 1 when analytics was told}, and of a budget: its scope, day or month, limit, spent, reserved, and the
            references of alerts that were made,
           {2} admitted before, {3, ref} this idempotency key has that task, {-1} the key came with another body,
           {-2} profile or counter missing: seed them, {-3, zone} the user's zone is another, {-4} the day is not today,
           {-5, numbers of the budgets that are to be seeded first ...}
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
local task, idem, profile, session, day, day_open, rate, tokens, running, user_window, user_held, bot_window, bot_held, queued,
  waiting, deadlines, outbox, kick, chat, history, waiters, lane, lane_held, told, events, events_kick, published, published_kick,
  analytics = unpack(KEYS)
local ref, print, personal, zone = ARGV[1], ARGV[2], ARGV[3] == '1', ARGV[4]
local day_starts, day_ends, limit = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local rate_limit, token_limit, cost, open_limit = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11])
local user_size, bot_size, max_depth, patience = tonumber(ARGV[12]), tonumber(ARGV[13]), tonumber(ARGV[14]), tonumber(ARGV[15])
local given_session, new_session, message, drain, waiter, row = ARGV[16], ARGV[17], ARGV[18], ARGV[19], ARGV[20], ARGV[21]
local lane_mode, event = tonumber(ARGV[22]), ARGV[23]
local to = {events = events, events_kick = events_kick, published = published, published_kick = published_kick, list = analytics,
            drain = ARGV[24], publishes = ARGV[25] == '1', publish_drain = ARGV[26]}
local LIMITS = {[2] = 'daily_limit_exceeded', [3] = 'rate_limit_exceeded', [4] = 'token_limit_exceeded', [5] = 'concurrency_limit_exceeded',
                [7] = 'budget_exceeded'}
local now = now_ms(ARGV[#ARGV])
local now_us, deadline = now * 1000, now + patience

if redis.call('EXISTS', task) == 1 then return {2} end
if print ~= '' then
  local known = redis.call('GET', idem)
  if known then
    local known_print, known_ref = string.match(known, '^(%S+) (%S+)$')
    if known_print ~= print then return {-1} end
    return {3, known_ref}
  end
end

local used, dialog = 0, ''
if personal then
  local own = redis.call('HMGET', profile, 'zone', 'limit', 'dialog')
  if not own[1] then return {-2} end
  if own[1] ~= zone then return {-3, own[1]} end
  if now < day_starts or now >= day_ends then return {-4} end
  used = day_used(day, day_open, now)
  if not used then return {-2} end
  if own[2] and own[2] ~= '' then limit = tonumber(own[2]) end
  dialog = own[3]
end

local by, budgets, months = nil, {}, nil
if ARGV[27] ~= '' then
  by, months = cjson.decode(ARGV[27]), {unpack(KEYS, 30)}
  if now < by.starts or now >= by.ends.day then return {-4} end
  by.keys = {unpack(months, 2 * #by.scopes + 1)}
  local missing = {-5}
  for i, scope in ipairs(by.scopes) do
    budgets[i] = budget_read(months[2 * i - 1], months[2 * i], by.dd, scope[4], now)
    if not budgets[i] then missing[#missing + 1] = i end
  end
  if #missing > 1 then return missing end
end

local refused, retry = 0, 0
local function refuse(code, ms)
  if refused == 0 then refused = code end
  retry = math.max(retry, ms)
end
local depth = redis.call('ZCARD', queued) + redis.call('ZCARD', waiting)
if message ~= '' then depth = math.max(depth, redis.call('LLEN', chat)) end
if depth >= max_depth then refuse(1, 2000) end
if personal and limit >= 0 and used >= limit then refuse(2, day_ends - now) end
local rate_tat, token_tat, wait = now_us, now_us, 0
if rate_limit > 0 then
  rate_tat, wait = gcra_ask(rate, rate_limit, 1, now_us)
  if wait > 0 then refuse(3, math.ceil(wait / 1000)) end
end
if token_limit > 0 then
  token_tat, wait = gcra_ask(tokens, token_limit, cost, now_us)
  if wait > 0 then refuse(4, cost > token_limit and day_ends - now or math.ceil(wait / 1000)) end
end
if open_limit > 0 then
  if redis.call('ZCOUNT', running, now - 60000, '+inf') >= open_limit then refuse(5, 1000) end
end
-- Nobody overtakes who waits.
local lane_taken = lane_mode > 0 and (redis.call('LLEN', lane_held) > 0 or redis.call('ZCOUNT', lane, now - 60000, '+inf') > 0)
if lane_taken and lane_mode == 2 then refuse(6, 1000) end
local short, period = nil, nil
for i, budget in ipairs(budgets) do
  local found = budget_short(budget, by.amount, by.scopes[i][2], by.scopes[i][3])
  if found and period ~= 'month' then short, period = i, found end
end
if short then refuse(7, by.ends[period] - now) end
if refused > 0 then
  if rate_limit > 0 then rate_tat = gcra_read(rate, now_us) end
  if token_limit > 0 then token_tat = gcra_read(tokens, now_us) end
end
local rate_left, rate_reset = gcra_left(rate_tat, math.max(rate_limit, 1), now_us)
local tokens_left, tokens_reset = gcra_left(token_tat, math.max(token_limit, 1), now_us)
if refused > 0 then
  -- Once a minute a user and limit, so that who hammers at a closed door fills nothing.
  local tell = 0
  if LIMITS[refused] and redis.call('GET', told) ~= LIMITS[refused] then
    redis.call('SET', told, LIMITS[refused], 'PX', 60000)
    event_add(to, 'event', event, 'ref', ref, 'at', string.format('%.0f', now), 'code', LIMITS[refused])
    tell = 1
  end
  local reply = {0, refused, retry, used, limit, rate_left, rate_reset, tokens_left, tokens_reset, tell}
  if refused == 7 then
    local budget, hash, scope = budgets[short], months[2 * short - 1], by.scopes[short]
    local spent, ceiling = budget[period], scope[period == 'day' and 2 or 3]
    for n, value in ipairs({scope[1], period, ceiling, spent, budget[period .. '_reserved']}) do reply[10 + n] = value end
    -- Used up, rather than too small for this one request or held by others for the moment.
    if ceiling > 0 and spent + by.amount > ceiling and spent * 2 >= ceiling and budget[period .. '_told'] < 100 then
      redis.call('HSET', hash, period == 'month' and 'am' or 'a' .. by.dd, 100)
      alert_tell(to, by, scope[1], period, 100, ceiling, spent, now)
      reply[16] = by.told[2]
    end
    for i, each in ipairs(budgets) do budget_give_back(months[2 * i - 1], months[2 * i], each.lapsed) end
  end
  return reply
end

-- From here on everything is written, and nothing may fail. Nothing was until here, not even a removal: after one a server without
-- memory would let a script go on.
if print ~= '' then redis.call('SET', idem, print .. ' ' .. ref, 'PX', 86400000) end
if personal then
  redis.call('ZADD', day_open, deadline + 60000, ref)
  redis.call('ZREMRANGEBYSCORE', day_open, '-inf', now)
  redis.call('PEXPIRE', day_open, 259200000)
end
if rate_limit > 0 then gcra_write(rate, rate_tat, now_us) end
if token_limit > 0 then gcra_write(tokens, token_tat, now_us) end
if open_limit > 0 then
  redis.call('ZADD', running, deadline, ref)
  redis.call('ZREMRANGEBYSCORE', running, '-inf', now - 60000)
  redis.call('PEXPIRE', running, 86400000)
end
for i, budget in ipairs(budgets) do
  local hash, open, scope = months[2 * i - 1], months[2 * i], by.scopes[i]
  budget_reserve(hash, open, ref, by.amount, by.amount, by.dd, deadline + by.lapses)
  budget_give_back(hash, open, budget.lapsed)
  budget_limits(hash, by.dd, budget, scope[2], scope[3])
end
if given_session == '' then
  redis.call('SET', session, new_session, 'NX', 'PX', 1800000)
  redis.call('PEXPIRE', session, 1800000)
  given_session = redis.call('GET', session)
end
redis.call('HSET', task, 'state', 'queued', 'attempt', 0, 'deaths', 0, 'created', now, 'deadline', deadline, 'session', given_session,
           unpack(ARGV, 28, #ARGV - 1))
if redis.call('HGET', task, 'dialog') == '@' then redis.call('HSET', task, 'dialog', dialog) end
redis.call('PEXPIRE', task, patience + 86400000)
redis.call('ZADD', deadlines, deadline, ref)
if waiter ~= '' then
  redis.call('SADD', waiters, waiter)
  redis.call('PEXPIRE', waiters, patience + 60000)
end
local drain_flag = redis.call('EXISTS', kick)
outbox_add(outbox, kick, history, drain, 'ref', ref, 'at', now, 'session', given_session, 'row', row)
local sent = 0
if lane_mode > 0 and not lane_taken then occupy(lane, 1, ref, deadline) end
if lane_taken then
  hold(lane_held, ref)
elseif not has_room(user_window, user_size, now) then
  hold(user_held, ref)
else
  occupy(user_window, user_size, ref, deadline)
  if not has_room(bot_window, bot_size, now) then
    hold(bot_held, ref)
  else
    occupy(bot_window, bot_size, ref, deadline)
    sent = 1
  end
end
if sent == 1 then send(ref, now, queued, chat, message) else redis.call('ZADD', waiting, now, ref) end
return {1, sent, now, used + 1, limit, rate_left, rate_reset, tokens_left, tokens_reset, depth, 1 - drain_flag}
