-- Puts the held hash back into the partition's own place. This activates an arrived copy or thaws a frozen partition.
--
-- KEYS  1  the partition
--       2  its held hash
-- ARGV  1  how the string in the partition's place must begin: 'arriving ' or 'moving '
--
-- Returns what stands in the partition's place afterwards ('' for the hash or nothing). If the string begins with
-- something else, nothing is changed.

if redis.call('TYPE', KEYS[1])['ok'] ~= 'string' then return '' end
local place = redis.call('GET', KEYS[1])
if string.sub(place, 1, #ARGV[1]) ~= ARGV[1] then return place end
redis.call('DEL', KEYS[1])
if redis.call('EXISTS', KEYS[2]) == 1 then redis.call('RENAME', KEYS[2], KEYS[1]) end
return ''
