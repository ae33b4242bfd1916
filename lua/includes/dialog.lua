-- Reads a dialog's header: v, seq, lo, n, tok, st, fs as numbers and a word; nil when it is not here, false when it is torn.
local function dialog_read(head, messages)
  local h = redis.call('HMGET', head, 'v', 'seq', 'lo', 'n', 'tok', 'st', 'fs', 'ut')
  if not h[1] then return nil end
  local dialog = {v = tonumber(h[1]), seq = tonumber(h[2]), lo = tonumber(h[3]), n = tonumber(h[4]), tok = tonumber(h[5]),
                  st = h[6], fs = tonumber(h[7]), ut = tonumber(h[8])}
  if redis.call('LLEN', messages) ~= dialog.n then return false end
  return dialog
end

-- Drops messages from the head until `max` are left; only what PostgreSQL has (up to `fs`) may go.
local function dialog_trim(dialog, messages, ids, max)
  while dialog.n > max and dialog.n > 1 and dialog.lo <= dialog.fs do
    local tok, mid = string.match(redis.call('LPOP', messages), '^(%d+)|[^|]*|([^|]*)|')
    redis.call('HDEL', ids, mid)
    dialog.n, dialog.lo, dialog.tok = dialog.n - 1, dialog.lo + 1, dialog.tok - tonumber(tok)
  end
end

-- Appends messages, given as a flat array of mid, role, tokens, body; those whose mid is known are left out.
-- Returns the first new seq and the packed new messages.
local function dialog_append(dialog, head, messages, ids, now, max, ttl, flat)
  local first, packed = dialog.seq + 1, {}
  local ts = math.max(now, dialog.ut)
  for i = 1, #flat, 4 do
    if redis.call('HSETNX', ids, flat[i], dialog.seq + 1) == 1 then
      packed[#packed + 1] = string.format('%s|%s|%s|%.0f|', flat[i + 2], flat[i + 1], flat[i], ts) .. flat[i + 3]
      dialog.seq, dialog.n, dialog.tok = dialog.seq + 1, dialog.n + 1, dialog.tok + tonumber(flat[i + 2])
    end
  end
  if #packed == 0 then return first, packed end
  redis.call('RPUSH', messages, unpack(packed))
  dialog_trim(dialog, messages, ids, max)
  redis.call('HSET', head, 'v', dialog.v + 1, 'seq', dialog.seq, 'lo', dialog.lo, 'n', dialog.n, 'tok', dialog.tok,
             'ut', string.format('%.0f', ts))
  for _, key in ipairs({head, messages, ids}) do redis.call('PEXPIRE', key, ttl) end
  return first, packed
end
