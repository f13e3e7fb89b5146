"""Where counts are kept once they are no longer pending: the contract of a store, and who owns which page.

A partition is read and changed atomically, and is owned by one shard. A call that fails says whether it may have been
carried out. Nobody waits for a shard that is known to be down.
"""
