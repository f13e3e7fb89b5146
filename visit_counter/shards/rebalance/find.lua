-- Reads fields of a partition wherever on this shard they are.
--
-- KEYS  1  the partition
--       2  its held hash
-- ARGV  the fields
--
-- Returns what stands in the partition's place ('' for the hash or nothing), and the values of the fields.

if redis.call('TYPE', KEYS[1])['ok'] ~= 'string' then return {'', redis.call('HMGET', KEYS[1], unpack(ARGV))} end
local place = redis.call('GET', KEYS[1])
if string.find(place, '^moved ') then return {place, {}} end
return {place, redis.call('HMGET', KEYS[2], unpack(ARGV))}
