-- Redis's own time, since a client's clock may be wrong; `shift` moves it in tests.
local function now_ms(shift)
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) + tonumber(shift)
end
