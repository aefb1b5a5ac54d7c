-- Takes one grant back from every limit, the newest: see shared.lua for what a list holds.
for _, key in ipairs(KEYS) do
  local total = redis.pcall('LINDEX', key, 0)
  total = type(total) == 'string' and tonumber(total) or 0
  if total == 1 then
    redis.call('DEL', key)
  elseif total > 1 then
    redis.call('LSET', key, 0, total - 1)
    local newest = tonumber(redis.call('LINDEX', key, 2))
    if newest > 1 then
      redis.call('LSET', key, 2, newest - 1)
    else
      redis.call('LPOP', key)
      redis.call('LPOP', key)
      redis.call('LSET', key, 0, total - 1)
    end
  end
end
