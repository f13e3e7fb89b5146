-- Takes a copy as whole if it has all fields. It stays frozen until it is activated.
--
-- KEYS  1  the partition
--       2  its held hash
--       3  its copy
-- ARGV  1  the string for the partition's place: 'arriving NAME RUN'
--       2  the number of fields that the copy must have
--
-- Returns what stands in the partition's place afterwards; 'taken' if there is a hash already, 'incomplete' if the copy
-- lacks fields or has too many. Nothing is changed in these two cases.

if redis.call('TYPE', KEYS[1])['ok'] == 'hash' then return 'taken' end
if redis.call('HLEN', KEYS[3]) ~= tonumber(ARGV[2]) then return 'incomplete' end
redis.call('UNLINK', KEYS[2])
if ARGV[2] ~= '0' then redis.call('RENAME', KEYS[3], KEYS[2]) end
redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]
