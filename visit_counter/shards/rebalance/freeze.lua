-- Freezes a partition: renames its hash, and leaves a string in its place, so that no write can reach it.
--
-- KEYS  1  the partition
--       2  its held hash
-- ARGV  1  the string: 'moving NAME RUN'
--
-- Returns what stands in the partition's place afterwards.

local kind = redis.call('TYPE', KEYS[1])['ok']
if kind == 'hash' then redis.call('RENAME', KEYS[1], KEYS[2])
elseif kind == 'none' then redis.call('UNLINK', KEYS[2])
elseif not string.find(redis.call('GET', KEYS[1]), '^moving ') then return redis.call('GET', KEYS[1]) end
redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]
