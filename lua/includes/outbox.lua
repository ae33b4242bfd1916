-- Adds a row to an outbox and asks for a drain, unless one has been asked for (the drainer takes the flag away before it reads).
local function outbox_add(stream, flag, list, template, ...)
  local id = redis.call('XADD', stream, '*', ...)
  if redis.call('SET', flag, '1', 'NX', 'PX', 5000) and template ~= '' then
    redis.call('LPUSH', list, (string.gsub(template, '~ref~', stream .. '/' .. id)))
  end
end
