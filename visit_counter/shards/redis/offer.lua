-- Keeps a shard map unless there is a newer one.
--
-- KEYS  1  the shard map
-- ARGV  1  the text of a shard map, which begins with its version
--
-- Returns the text that is there afterwards.

local present = redis.call('GET', KEYS[1]) or '0'
if tonumber(string.match(present, '^%d+') or 0) < tonumber(string.match(ARGV[1], '^%d+')) then
  redis.call('SET', KEYS[1], ARGV[1])
  return ARGV[1]
end
return present
