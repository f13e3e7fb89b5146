"""From a question to its answer: a count is the stored visits plus the pending ones.

A visit that was answered is counted once, and no reader of a host sees a count go down. The stored part comes from
the local cache, or from one read of a shard that many requests share; the pending part comes from the journal. No
thread holds a lock while it waits for a network.
"""
