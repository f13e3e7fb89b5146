"""From a question to its answer: a count is what is stored plus what is pending.

A visit that was answered is counted once, and no reader of a host sees a count go down. The stored part comes from
the local cache or from one read of a shard that many share; the pending part from the journal. No lock is held while
anybody waits for a network.
"""
