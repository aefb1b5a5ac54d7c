-- Takes a write for one run, if nobody has had it yet: in one step for all processes.
--
-- KEYS: the write. ARGV: its record up to the end of the run's time, that time and the record's life in milliseconds, and the
-- time (milliseconds) after which nobody waits for the answer any more.
-- Returns the time here, and the record that was there: '' when there was none, and the write is taken now.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local record = redis.call('GET', KEYS[1])
if record then return {now, record} end
if now > tonumber(ARGV[4]) then return {now, 'late'} end
redis.call('SET', KEYS[1], ARGV[1] .. string.format('%.0f', now + ARGV[2]), 'PX', ARGV[3])
return {now, ''}
