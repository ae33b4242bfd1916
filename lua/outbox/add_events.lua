--[[
  Adds events to the outbox of events, and to that of the broker's where there is one; all of them, or none.

  KEYS[1]  stream  events outbox
  KEYS[2]  string  events outbox: a drain has been asked for
  KEYS[3]  stream  publish outbox
  KEYS[4]  string  publish outbox: a drain has been asked for
  KEYS[5]  list    Celery's analytics queue
  ARGV[1]  str     message that asks for a drain of events, '' when the caller publishes
  ARGV[2]  int     1 when a broker carries events
  ARGV[3]  str     message that asks for a drain of what is to be published
  ARGV[4]  str     events as JSON, one an argument

  RETURNS  {how many}
]]
--- include outbox
--- include events
local events, events_kick, published, published_kick, analytics = unpack(KEYS)
local drain, publishes, publish_drain = ARGV[1], ARGV[2] == '1', ARGV[3]
local to = {events = events, events_kick = events_kick, published = published, published_kick = published_kick, list = analytics,
            drain = drain, publishes = publishes, publish_drain = publish_drain}

for i = 4, #ARGV - 1 do event_add(to, 'event', ARGV[i]) end
return {#ARGV - 4}
