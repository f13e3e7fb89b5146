"""From sealed segments to the partitions, exactly once.

A batch and its watermark change in one script, so repeating a flush whose reply was lost changes nothing. Any process
may be killed at any step; the next flush starts from the watermarks in the partitions. A segment is deleted only when
no shard can need it again.
"""
