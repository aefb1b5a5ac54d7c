-- Decides what a refresh token is worth, and makes its successor the family's current one: in one step for all processes.
--
-- KEYS: what is current of the family, and its revocation. ARGV: the id of the token ('' for one that no gateway minted),
-- that of its successor, the lives of both keys in milliseconds, and the time (milliseconds) after which nobody waits for
-- the answer any more.
local time = redis.call('TIME')
if time[1] * 1000 + math.floor(time[2] / 1000) > tonumber(ARGV[5]) then return 'late' end
local current = redis.call('GET', KEYS[1])
if current == '-' then return 'dead' end
local is_ours = ARGV[1] ~= ''
if not current and is_ours then return 'lost' end
-- A token that another program minted may have lived longer than ours do.
local life = math.max(tonumber(ARGV[3]), redis.call('PTTL', KEYS[1]))
if not current or (is_ours and current == ARGV[1]) then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', life)
  return 'rotated'
end
redis.call('SET', KEYS[1], '-', 'PX', life)
redis.call('SET', KEYS[2], '1', 'PX', ARGV[4])
return 'reused'
