--[[
  Reads a dialog's header.

  KEYS[1]  hash    the dialog's header
  KEYS[2]  list    its messages
  KEYS[3]  hash    its message ids

  RETURNS  {1, name, value, ...}, {-1} not here, {-5} torn
]]
--- include dialog
local head, messages, ids = unpack(KEYS)

local dialog = dialog_read(head, messages, ids)
if dialog == nil then return {-1} end
if dialog == false then return {-5} end
return {1, unpack(redis.call('HGETALL', head))}
