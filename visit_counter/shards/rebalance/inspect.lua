-- Tells what stands in the place of a partition.
--
-- KEYS  1  the partition
--       2  its held hash
-- ARGV  none
--
-- Returns what stands in the partition's place ('' for the hash or nothing), and how many fields the hash has, or the
-- held hash if there is a string in the partition's place.

local kind = redis.call('TYPE', KEYS[1])['ok']
if kind == 'string' then return {redis.call('GET', KEYS[1]), redis.call('HLEN', KEYS[2])} end
return {'', redis.call('HLEN', KEYS[1])}
