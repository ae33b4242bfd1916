--[[
  Finds what the ledger of one shard says is to be mended; `requeue`, `finish` and `let_in` then mend each, if it still stands so.
  A lease that ran out while nobody swept is spared for 5 s: Redis was away then, and its holder could not renew it either.
  A queued task is lost when one that was sent 5 s after it has been claimed (the queue is first in, first out), or when the
  broker's queue is empty and its message was sent 5 s ago.

  KEYS[1]  string  the lock among sweeping processes
  KEYS[2]  zset    ledger: leased
  KEYS[3]  zset    ledger: queued
  KEYS[4]  zset    ledger: due
  KEYS[5]  zset    ledger: deadlines
  KEYS[6]  zset    ledger: waiting
  KEYS[7]  string  ledger: the latest sending time among claimed tasks
  KEYS[8]  list    Celery's chat queue
  KEYS[9]  hash    at: when a sweep last looked, spare: until when lapsed leases are let be, ms
  ARGV[1]  int ms  how long the lock is held
  ARGV[2]  int     at most so many of each
  ARGV[3]  int     messages in the broker's queue where the caller knows, -1 to count the list, -2 unknown

  RETURNS  {} somebody else sweeps, {lapsed, lost and its score in turn, due, past their deadline, long held back}
]]
--- include clock
local lock, leased, queued, due, deadlines, waiting, claimed, chat, swept = unpack(KEYS)
local hold_ms, most, depth = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local now = now_ms(ARGV[#ARGV])
local GRACE, GAP = 5000, 3000

if not redis.call('SET', lock, '1', 'NX', 'PX', hold_ms) then return {} end
local function until_ms(key, limit) return redis.call('ZRANGEBYSCORE', key, '-inf', limit, 'LIMIT', 0, most) end
local looked = redis.call('HMGET', swept, 'at', 'spare')
local spare = tonumber(looked[2] or 0)
if now - tonumber(looked[1] or now) > GAP then spare = now + GRACE end
redis.call('HSET', swept, 'at', now, 'spare', spare)
redis.call('PEXPIRE', swept, 86400000)
local sent_before = tonumber(redis.call('GET', claimed) or 0) - GRACE
if depth == -1 then depth = redis.call('LLEN', chat) end
if depth == 0 then sent_before = math.max(sent_before, now - GRACE) end
local lost = redis.call('ZRANGEBYSCORE', queued, '-inf', sent_before, 'WITHSCORES', 'LIMIT', 0, most)
local lapsed = {}
if now >= spare then lapsed = until_ms(leased, now) end
return {lapsed, lost, until_ms(due, now), until_ms(deadlines, now), until_ms(waiting, now - 15000)}
