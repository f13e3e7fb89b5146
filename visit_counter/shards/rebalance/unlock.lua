-- Releases the lock of a rebalance if this run has it.
--
-- KEYS  1  the lock
-- ARGV  1  the run
--
-- Returns 1.

if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
