--[[
  Reads what a model is given of a dialog: its last messages, within a count and a token budget, from a given role on, and the summary
  of what came before.

  KEYS[1]  hash    the dialog's header
  KEYS[2]  list    its messages
  ARGV[1]  int     at most so many messages, 100 at the most
  ARGV[2]  int     at most so many tokens, 0 for no budget
  ARGV[3]  str     role that the first message must have, or ''

  RETURNS  {1, version, state, seq of the first read, seq of the last, seq of the first that is here, messages that are here,
           messages in all, tokens in all, tokens read, seq up to which the summary goes, summary, message ...}, {-1} not here, {-5} torn
]]
--- include dialog
local head, messages = unpack(KEYS)
local most, budget, first_role = math.min(tonumber(ARGV[1]), 100), tonumber(ARGV[2]), ARGV[3]

local dialog = dialog_read(head, messages)
if dialog == nil then return {-1} end
if dialog == false then return {-5} end
local more = redis.call('HMGET', head, 'sq', 'sm')
local folded, summary = tonumber(more[1] or 0), more[2] or ''
if most == 0 or dialog.n == 0 then
  return {1, dialog.v, dialog.st, dialog.seq + 1, dialog.seq, dialog.lo, dialog.n, dialog.cnt, dialog.sum, 0, folded, summary}
end
local read = redis.call('LRANGE', messages, -math.min(most, dialog.n), -1)
local first, spent = #read + 1, 0
for i = #read, 1, -1 do
  local _, tok = dialog_unpack(read[i])
  if budget > 0 and spent + tok > budget then break end
  first, spent = i, spent + tok
end
while first_role ~= '' and first <= #read do
  local _, tok, role = dialog_unpack(read[first])
  if role == first_role then break end
  first, spent = first + 1, spent - tok
end
local seq = dialog.seq + 1
if first <= #read then seq = dialog_unpack(read[first]) end
return {1, dialog.v, dialog.st, seq, dialog.seq, dialog.lo, dialog.n, dialog.cnt, dialog.sum, spent, folded, summary, unpack(read, first)}
