--[[
  Reads what a model is given of a dialog: its last messages, within a count and a token budget, from a given role on.

  KEYS[1]  hash    the dialog's header
  KEYS[2]  list    its messages
  ARGV[1]  int     at most so many messages, 100 at the most
  ARGV[2]  int     at most so many tokens, 0 for no budget
  ARGV[3]  str     role that the first message must have, or ''

  RETURNS  {1, version, seq of the first, messages in the dialog, tokens read, message ...}, {-1} not here, {-5} torn
]]
--- include dialog
local head, messages = unpack(KEYS)
local most, budget, first_role = math.min(tonumber(ARGV[1]), 100), tonumber(ARGV[2]), ARGV[3]

local dialog = dialog_read(head, messages)
if dialog == nil then return {-1} end
if dialog == false then return {-5} end
if most == 0 or dialog.n == 0 then return {1, dialog.v, dialog.seq + 1, dialog.n, 0} end
local read = redis.call('LRANGE', messages, -math.min(most, dialog.n), -1)
local first, spent = #read + 1, 0
for i = #read, 1, -1 do
  local tok = tonumber(string.match(read[i], '^(%d+)|'))
  if budget > 0 and spent + tok > budget then break end
  first, spent = i, spent + tok
end
while first_role ~= '' and first <= #read do
  local tok, role = string.match(read[first], '^(%d+)|([^|]*)|')
  if role == first_role then break end
  first, spent = first + 1, spent - tonumber(tok)
end
return {1, dialog.v, dialog.seq - #read + first, dialog.n, spent, unpack(read, first)}
