-- Spends one on every limit, or on none: exact sliding windows, one for all processes.
--
-- KEYS: a list for each limit. ARGV: for each limit its max, and its window, step and block in milliseconds. Who exceeds a
-- limit with a block is kept out for so long: as if all had been granted so late that they leave the window only then.
-- A list holds its total, and then each step's end with the grants in it, the newest first: total, end, count, end, count …
-- Ends are rounded up, as in the memory of a process: that can hold a request back for a step, never let one too many
-- through.
-- Returns 1 for granted, 0 for not, 2 for not and a block begins, and for each limit how much of it is used, and when the oldest grant leaves it, in
-- milliseconds.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local used, leaves, granted = {}, {}, 1
for i, key in ipairs(KEYS) do
  local max, window = tonumber(ARGV[4 * i - 3]), tonumber(ARGV[4 * i - 2])
  local total = redis.pcall('LINDEX', key, 0)
  if type(total) == 'table' then
    -- Another program's key of the same name.
    redis.call('DEL', key)
    total = false
  end
  -- What another program has put into a list is no total, and no time.
  total = tonumber(total or 0) or 0
  local oldest = total > 0 and tonumber(redis.call('LINDEX', key, -2))
  while total > 0 and oldest and now - oldest > window do
    total = total - (tonumber(redis.call('RPOP', key)) or total)
    redis.call('RPOP', key)
    oldest = total > 0 and tonumber(redis.call('LINDEX', key, -2))
  end
  if total <= 0 or not oldest then total, oldest = 0, false end
  if total == 0 then redis.call('DEL', key) else redis.call('LSET', key, 0, total) end
  if total >= max then
    local step, block = tonumber(ARGV[4 * i - 1]), tonumber(ARGV[4 * i])
    if granted == 1 then granted = 0 end
    -- The end of a block is no whole number: so it is known.
    if block > 0 and oldest % 1 == 0 then
      granted = 2
      total = max
      oldest = now + block - window + 0.5
      redis.call('DEL', key)
      redis.call('RPUSH', key, total, string.format('%.1f', oldest), total)
      redis.call('PEXPIRE', key, block + step)
    end
  end
  used[i] = total
  leaves[i] = oldest and math.max(oldest + window + 1 - now, 1) or 0
end
local answer = { granted }
for i, key in ipairs(KEYS) do
  if granted == 1 then
    local window, step = tonumber(ARGV[4 * i - 2]), tonumber(ARGV[4 * i - 1])
    local ends = now - now % step + step - 1
    used[i] = used[i] + 1
    if used[i] == 1 then
      redis.call('RPUSH', key, 1, ends, 1)
      leaves[i] = ends + window + 1 - now
    else
      redis.call('LSET', key, 0, used[i])
      if tonumber(redis.call('LINDEX', key, 1)) == ends then
        redis.call('LSET', key, 2, tonumber(redis.call('LINDEX', key, 2)) + 1)
      else
        redis.call('LPOP', key)
        redis.call('LPUSH', key, 1, ends, used[i])
      end
    end
    redis.call('PEXPIRE', key, window + step)
  end
  answer[2 * i] = used[i]
  answer[2 * i + 1] = leaves[i]
end
return answer
