-- Deletes a frozen partition whose copy is on the other shard's disk, and leaves a string that says where it is.
--
-- KEYS  1  the partition
--       2  its held hash
-- ARGV  1  the string that must be there: 'moving NAME RUN'
--       2  the string to leave: 'moved NAME'
--
-- Returns what stands in the partition's place afterwards; 'hash' if there is no string, and then nothing is changed.
-- When it is run again it writes again. WAITAOF waits for the last write of its connection, so this write must exist.

if redis.call('TYPE', KEYS[1])['ok'] ~= 'string' then return 'hash' end
local place = redis.call('GET', KEYS[1])
if place ~= ARGV[1] and place ~= ARGV[2] then return place end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('UNLINK', KEYS[2])
return ARGV[2]
