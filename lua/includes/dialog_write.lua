-- Writing to a dialog; needs `dialog` and `outbox`. `index` holds the bot's dialogs that are here by their last activity, `dirty` those
-- that PostgreSQL does not have as they are now.
local KEPT_TOKENS = 200000

-- Drops messages from the head until `max` are left (and no more tokens than a model could be given); only what PostgreSQL has may go.
local function dialog_trim(dialog, messages, ids, max)
  for _ = 1, 500 do
    if dialog.n <= 1 or dialog.lo > dialog.fs or (dialog.n <= max and dialog.tok <= KEPT_TOKENS) then return end
    local dense = dialog.seq - dialog.lo + 1 == dialog.n
    local _, tok, _, mid = dialog_unpack(redis.call('LPOP', messages))
    redis.call('HDEL', ids, mid)
    dialog.n, dialog.tok = dialog.n - 1, dialog.tok - tok
    dialog.lo = dense and dialog.lo + 1 or dialog_unpack(redis.call('LINDEX', messages, 0))
  end
end

local function dialog_expire(keys, ttl)
  for _, key in ipairs(keys) do redis.call('PEXPIRE', key, ttl) end
end

-- Remembers a dialog's activity. The time to live is refreshed only where a sixteenth of it is over, or where a key is new.
local function dialog_touch(dialog, keys, index, dirty, ref, now, ttl)
  local fresh = redis.call('ZADD', index, string.format('%.0f', dialog.lt), ref) == 1
  if redis.call('ZADD', dirty, string.format('%.0f', now), ref) == 1 then redis.call('PEXPIRE', dirty, ttl) end
  if not fresh and now - dialog.ex < ttl / 16 then return end
  dialog.ex = now
  redis.call('HSET', keys[1], 'ex', string.format('%.0f', now))
  dialog_expire(keys, ttl)
  redis.call('PEXPIRE', index, ttl)
  redis.call('PEXPIRE', dirty, ttl)
end

-- Appends messages, given as a flat array of mid, role, tokens, metadata, body; those whose mid is known are left out. What is not
-- `lasting` is written nowhere else. Returns the first new seq, the packed new messages and the time that they were given.
local function dialog_append(dialog, head, messages, ids, now, max, lasting, flat)
  local first, packed, ts = dialog.seq + 1, {}, math.max(now, dialog.lt)
  for i = 1, #flat, 5 do
    local mid, role, tokens, meta, body = unpack(flat, i, i + 4)
    if redis.call('HSETNX', ids, mid, string.format('%.0f', dialog.seq + 1)) == 1 then
      dialog.seq, dialog.n, dialog.cnt = dialog.seq + 1, dialog.n + 1, dialog.cnt + 1
      dialog.tok, dialog.sum = dialog.tok + tonumber(tokens), dialog.sum + tonumber(tokens)
      packed[#packed + 1] = string.format('%.0f|%s|%s|%s|%.0f|%d|', dialog.seq, tokens, role, mid, ts, #meta) .. meta .. body
    end
  end
  if #packed == 0 then return first, packed, ts end
  if dialog.n == #packed then dialog.lo, dialog.ex = first, 0 end
  for _, text in ipairs(packed) do redis.call('RPUSH', messages, text) end
  if not lasting then dialog.fs = dialog.seq end -- so it may be trimmed
  dialog_trim(dialog, messages, ids, max)
  dialog.v, dialog.lt, dialog.ut = dialog.v + 1, ts, ts
  redis.call('HSET', head, 'v', dialog.v, 'seq', dialog.seq, 'lo', dialog.lo, 'n', dialog.n, 'tok', dialog.tok, 'cnt', dialog.cnt,
             'sum', dialog.sum, 'fs', dialog.fs, 'lt', string.format('%.0f', ts), 'ut', string.format('%.0f', ts))
  return first, packed, ts
end

-- Tells PostgreSQL of messages, of those that are not lasting only that there were some; and of what of the header has changed (name and
-- value in turn).
local function dialog_tell(dialog, outbox, kick, list, template, ref, bot, now, first, packed, lasting, changes)
  local fields = {'dialog', ref, 'bot', bot, 'user', dialog.user, 'kind', dialog.kind, 'v', dialog.v, 'at', string.format('%.0f', now)}
  if #packed > 0 and not lasting then
    local stamp = string.format('%.0f', dialog.lt)
    for _, value in ipairs({'last', string.format('%.0f', dialog.seq), 'lt', stamp, 'cnt', dialog.cnt, 'sum', dialog.sum}) do
      fields[#fields + 1] = value
    end
  elseif #packed > 0 then
    fields[#fields + 1], fields[#fields + 2] = 'seq', string.format('%.0f', first)
    for i, text in ipairs(packed) do
      fields[#fields + 1], fields[#fields + 2] = 'm' .. i, text
    end
  end
  for _, value in ipairs(changes or {}) do fields[#fields + 1] = value end
  outbox_add(outbox, kick, list, template, unpack(fields))
end
