-- Takes the lock of a rebalance, or keeps it for longer.
--
-- KEYS  1  the lock
-- ARGV  1  the run
--       2  for how many milliseconds
--
-- Returns the run that has the lock afterwards.

local holder = redis.call('GET', KEYS[1]) or ARGV[1]
if holder == ARGV[1] then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return holder
