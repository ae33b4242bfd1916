--[[
  Appends messages to a dialog, all or none; those whose id is known are there already and keep their place.

  KEYS[1]  hash    the dialog's header
  KEYS[2]  list    its messages
  KEYS[3]  hash    its message ids
  KEYS[4]  zset    the bot's dialogs that are here
  KEYS[5]  zset    those that PostgreSQL does not have as they are
  KEYS[6]  stream  dialogs outbox
  KEYS[7]  string  dialogs outbox: a drain has been asked for
  KEYS[8]  list    Celery's history queue
  ARGV[1]  str     the dialog's reference
  ARGV[2]  str     the bot
  ARGV[3]  str     the version that it must have, or ''
  ARGV[4]  int     how many messages are kept here
  ARGV[5]  int ms  how long it stays while idle
  ARGV[6]  int     how many messages may be on their way to PostgreSQL
  ARGV[7]  int     1 when PostgreSQL is to have them
  ARGV[8]  str     message that asks for a drain, '' when the caller publishes
  ARGV[9]  str     mid, role, tokens, metadata and body of each message, up to 100

  RETURNS  {1, version, ms of the new ones, seq of each ...}, {0, version, 0, seq of each ...} all were known,
           {-1} not here, {-2, version} it has another version, {-3, state} not active, {-5} torn, {-6} too many on their way
]]
--- include clock
--- include outbox
--- include dialog
--- include dialog_write
local head, messages, ids, index, dirty, outbox, kick, history = unpack(KEYS)
local ref, bot, expected, keep, ttl, most, drain = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[8]
local lasting = ARGV[7] == '1'
local now = now_ms(ARGV[#ARGV])

local dialog = dialog_read(head, messages, ids)
if dialog == nil then return {-1} end
if dialog == false then return {-5} end
local flat, mids = {}, {}
for i = 9, #ARGV - 1 do
  flat[#flat + 1] = ARGV[i]
  if (i - 9) % 5 == 0 then mids[#mids + 1] = ARGV[i] end
end
local known, new = redis.call('HMGET', ids, unpack(mids)), 0
for i = 1, #mids do
  if not known[i] then new = new + 1 end
end
local result = {0, dialog.v, 0}
if new > 0 then
  if dialog.st ~= 'active' then return {-3, dialog.st} end
  if expected ~= '' and tonumber(expected) ~= dialog.v then return {-2, dialog.v} end
  if lasting and dialog.seq - dialog.fs + new > most then return {-6} end
  local first, packed, ts = dialog_append(dialog, head, messages, ids, now, keep, lasting, flat)
  dialog_touch(dialog, {head, messages, ids}, index, dirty, ref, now, ttl)
  dialog_tell(dialog, outbox, kick, history, drain, ref, bot, now, first, packed, lasting)
  result = {1, dialog.v, ts}
  local seq, given = first, {}
  for i, mid in ipairs(mids) do
    if not known[i] then
      if not given[mid] then
        given[mid], seq = seq, seq + 1
      end
      known[i] = given[mid]
    end
  end
end
for _, seq in ipairs(known) do result[#result + 1] = tonumber(seq) end
return result
