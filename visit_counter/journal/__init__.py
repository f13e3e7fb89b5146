"""The append-only files that hold the visits of one host until the shards have them.

A visit is acknowledged only after its line is in the journal. All processes of a host append to the same files and
replay them in the same order, so they agree on every count. A damaged line is found by its checksum, skipped and
reported.
"""
