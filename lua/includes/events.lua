-- Tells analytics of an event; where a broker carries events, a second stream gets it for that one. Needs `outbox`.
-- `to` names the streams, their kicks, Celery's list, and the messages that ask for the drains.
local function event_add(to, ...)
  outbox_add(to.events, to.events_kick, to.list, to.drain, ...)
  if to.publishes then outbox_add(to.published, to.published_kick, to.list, to.publish_drain, ...) end
end
