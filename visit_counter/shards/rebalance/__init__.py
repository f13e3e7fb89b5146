"""Moving partitions between shards while the service runs.

A partition is on exactly one shard at every moment, and a sign in its old place leads to the new one. A rebalance
that was killed is started again and finishes. Nothing is overwritten: counts that are in the way are reported.
"""
