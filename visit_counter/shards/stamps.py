"""The stamp of a partition: the last apply that changed it, and the last one before that by another writer. Pure.

A stamp is `<writer>/<watermark> <writer>/<watermark>`, or "" if nothing was applied yet. `apply.lua` sets it in the
same step in which it changes a count. So every writer finds in it the last change by another writer. As long as that is
the same, no other writer has changed a count of the partition.

The stamp is not a simple counter of changes: a shard that comes back with older data would count up to the same number
again, with other visits.
"""

from __future__ import annotations


def next_stamp(stamp: str, writer: str, watermark: str) -> str:
    """Return the stamp of a partition after this writer's apply, given the one before it; `apply.lua` does the same."""
    return f"{writer}/{watermark} {others_change(stamp, writer)}"


def others_change(stamp: str, writer: str) -> str:
    """Return the last change of a partition by another writer than this one; "" if there is none."""
    last, _, before = stamp.partition(" ")
    return before if last.startswith(f"{writer}/") else last
