-- Ends a run: only its own write, and only once. Said twice it is as good as said once.
--
-- KEYS: the write. ARGV: the run, what is known of the write now ('': nothing was done, it may run again), and how long that is
-- kept, in milliseconds.
local record = redis.call('GET', KEYS[1])
if record then
  local mine = string.match(record, '^running %x+ (%x+) ')
  if mine ~= ARGV[1] then return 0 end
end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
return 1
