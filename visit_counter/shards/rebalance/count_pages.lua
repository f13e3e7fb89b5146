-- Counts the pages of a partition: its fields without our own ones, which begin with a tab.
--
-- KEYS  1  the hash: the partition or its held hash
-- ARGV  none
--
-- Returns the number of pages. With a COUNT that is larger than the hash, HSCAN visits all of its fields in one call.

local marks = redis.call('HSCAN', KEYS[1], 0, 'MATCH', '\t*', 'COUNT', 100000000)[2]
return redis.call('HLEN', KEYS[1]) - #marks / 2
