-- Deletes a copy, whole or not, whose source keeps the partition.
--
-- KEYS  1  the partition
--       2  its held hash
--       3  its copy
-- ARGV  1  the string to leave: 'moved NAME'
--
-- Returns what stands in the partition's place afterwards ('' for the hash or nothing). Nothing but 'arriving ...' is
-- replaced.

redis.call('UNLINK', KEYS[3])
if redis.call('TYPE', KEYS[1])['ok'] ~= 'string' then return '' end
if not string.find(redis.call('GET', KEYS[1]), '^arriving ') then return redis.call('GET', KEYS[1]) end
redis.call('UNLINK', KEYS[2])
redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]
