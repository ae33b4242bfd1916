-- A dialog: its header, a list of its last messages (`seq|tokens|role|mid|ts_ms|length of metadata|metadata and body`, oldest first)
-- and a hash of their ids. Reads the header; nil when it is not here, false when it is torn (a key of it was lost).
local function dialog_read(head, messages, ids)
  local h = redis.call('HMGET', head, 'v', 'seq', 'lo', 'n', 'tok', 'st', 'fs', 'lt', 'cnt', 'sum', 'ex', 'user', 'kind', 'ut')
  if not h[1] then return nil end
  local dialog = {v = tonumber(h[1]), seq = tonumber(h[2]), lo = tonumber(h[3]), n = tonumber(h[4]), tok = tonumber(h[5]), st = h[6],
                  fs = tonumber(h[7]), lt = tonumber(h[8]), cnt = tonumber(h[9]), sum = tonumber(h[10]), ex = tonumber(h[11]),
                  user = h[12], kind = h[13], ut = tonumber(h[14])}
  if dialog.st == 'deleted' then return dialog end
  if redis.call('LLEN', messages) ~= dialog.n then return false end
  if ids and redis.call('HLEN', ids) ~= dialog.n then return false end
  return dialog
end

local function dialog_unpack(packed)
  local seq, tok, role, mid = string.match(packed, '^(%d+)|(%d+)|([^|]*)|([^|]*)|')
  return tonumber(seq), tonumber(tok), role, mid
end
