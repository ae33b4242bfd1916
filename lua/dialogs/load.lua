--[[
  Puts a dialog that Redis lacks, or holds torn, in place from PostgreSQL; without messages it makes a new one.

  KEYS[1]  hash    the dialog's header
  KEYS[2]  list    its messages
  KEYS[3]  hash    its message ids
  ARGV[1]  int ms  how long it stays while idle
  ARGV[2]  str     its user
  ARGV[3]  int     seq of its last message
  ARGV[4]  int     version
  ARGV[5]  str     state
  ARGV[6]  int ms  when it was made
  ARGV[7]  int ms  when it was last written
  ARGV[8]  str     its last messages, packed, up to 200

  RETURNS  {1} loaded, {0} somebody else was first
]]
--- include dialog
local head, messages, ids = unpack(KEYS)
local ttl, user, seq, version, state, made, written = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5], ARGV[6], ARGV[7]

if dialog_read(head, messages) then return {0} end
local n, tok = #ARGV - 8, 0
redis.call('DEL', head, messages, ids)
for i = 8, #ARGV - 1 do
  local tokens, mid = string.match(ARGV[i], '^(%d+)|[^|]*|([^|]*)|')
  tok = tok + tonumber(tokens)
  redis.call('HSET', ids, mid, seq - n + i - 7)
  redis.call('RPUSH', messages, ARGV[i])
end
redis.call('HSET', head, 'v', version, 'seq', seq, 'lo', seq - n + 1, 'n', n, 'tok', tok, 'st', state, 'fs', seq, 'ct', made, 'ut', written,
           'user', user)
for _, key in ipairs({head, messages, ids}) do redis.call('PEXPIRE', key, ttl) end
return {1}
