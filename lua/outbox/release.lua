--[[
  Ends a drain, unless rows came meanwhile: looking and leaving are one step, so that no row is left without a drainer.

  KEYS[1]  string  the drainer's lease
  KEYS[2]  stream  the outbox
  ARGV[1]  str     token of the caller
  ARGV[2]  int     1 to leave even if there is more

  RETURNS  {1} released, {0} there is more: go on
]]
local lease, stream = unpack(KEYS)
local token, leave = ARGV[1], ARGV[2] == '1'

if not leave and redis.call('XLEN', stream) > 0 then return {0} end
if redis.call('GET', lease) == token then redis.call('DEL', lease) end
return {1}
