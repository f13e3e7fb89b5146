"""A Redis Cluster as one shard: which of its servers has a partition.

It follows MOVED and ASK, so slots may move while the service runs. A server that fails makes its own partitions
unavailable and no others. What is known of the slots is asked from the cluster and corrected by what its servers
reply.
"""
