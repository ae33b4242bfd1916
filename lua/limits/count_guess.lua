--[[
  Counts a key that nobody here knows as a guess of an address, before anybody looks it up, so that many at once are not too many. A
  guess that comes again is the same one: who repeats a key that was revoked guesses nothing.

  KEYS[1]  set     the address's guesses
  ARGV[1]  str     the guess
  ARGV[2]  int     guesses that an address has
  ARGV[3]  int ms  for how long they count, from the first

  RETURNS  int     0, or for how long the address is to wait, ms
]]
local guesses = KEYS[1]
local guess, most, window = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

if redis.call('SISMEMBER', guesses, guess) == 1 then return 0 end
local count = redis.call('SCARD', guesses)
if count >= most then return math.max(1, redis.call('PTTL', guesses)) end
redis.call('SADD', guesses, guess)
if count == 0 then redis.call('PEXPIRE', guesses, window) end
return 0
