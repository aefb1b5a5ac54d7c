-- Ends a family: no refresh token of it is current any more, and its access tokens are revoked.
--
-- KEYS: what is current of the family, and its revocation. ARGV: the lives of both keys in milliseconds.
local life = math.max(tonumber(ARGV[1]), redis.call('PTTL', KEYS[1]))
redis.call('SET', KEYS[1], '-', 'PX', life)
redis.call('SET', KEYS[2], '1', 'PX', ARGV[2])
