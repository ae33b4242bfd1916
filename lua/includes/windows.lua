-- A task reaches the broker through its user's window and then its bot's; what is over one waits in that one's list.
-- Entries are dropped when their deadline is long past, so that a window cannot leak shut.
local function has_room(window, size, now)
  if size == 0 then return true end
  redis.call('ZREMRANGEBYSCORE', window, '-inf', now - 60000)
  return redis.call('ZCARD', window) < size
end

local function occupy(window, size, ref, deadline)
  if size == 0 then return end
  redis.call('ZADD', window, deadline, ref)
  redis.call('PEXPIRE', window, 86400000)
end

local function hold(held, ref)
  redis.call('LPUSH', held, ref)
  redis.call('PEXPIRE', held, 86400000)
end

-- Lets in as many of the waiting as there is room for, eight at the most a call; `pass` is called with each.
local function refill(window, size, held, deadlines, now, pass)
  for _ = 1, 8 do
    if not has_room(window, size, now) then return end
    local ref = redis.call('RPOP', held)
    if not ref then return end
    occupy(window, size, ref, redis.call('ZSCORE', deadlines, ref) or now)
    pass(ref)
  end
end
