--[[
  Reads messages of a dialog on one side of a seq, as far as they are here.

  KEYS[1]  hash    the dialog's header
  KEYS[2]  list    its messages
  ARGV[1]  int     asc: seqs above this; desc: seqs below this, 0 for the end
  ARGV[2]  str     asc or desc
  ARGV[3]  int     at most so many, 200 at the most

  RETURNS  {1, state, seq of the first that is here, seq of the last, message ...} in the order asked for, {-1} not here, {-5} torn
]]
--- include dialog
local head, messages = unpack(KEYS)
local from, order, most = tonumber(ARGV[1]), ARGV[2], math.min(tonumber(ARGV[3]), 200)

local dialog = dialog_read(head, messages)
if dialog == nil then return {-1} end
if dialog == false then return {-5} end
local result = {1, dialog.st, dialog.lo, dialog.seq}
if dialog.st == 'deleted' or dialog.n == 0 or most < 1 then return result end
local first, last = 0, dialog.n - 1 -- places in the list
if dialog.seq - dialog.lo + 1 == dialog.n then -- no number was skipped: places can be counted
  if order == 'asc' then
    first = math.max(0, from + 1 - dialog.lo)
    last = math.min(last, first + most - 1)
  else
    if from > 0 then last = math.min(last, from - 1 - dialog.lo) end
    first = math.max(0, last - most + 1)
  end
  if last < first then return result end
end
local read = redis.call('LRANGE', messages, first, last)
local start, stop, step = 1, #read, 1
if order == 'desc' then start, stop, step = #read, 1, -1 end
for i = start, stop, step do
  local seq = dialog_unpack(read[i])
  if #result < most + 4 and ((order == 'asc' and seq > from) or (order == 'desc' and (from == 0 or seq < from))) then
    result[#result + 1] = read[i]
  end
end
return result
