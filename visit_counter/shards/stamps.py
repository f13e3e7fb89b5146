"""The stamp of a partition: which apply changed it last, and which was the last before it of another writer. Pure.

A stamp is `<writer>/<watermark> <writer>/<watermark>`, or "" where nothing was applied yet. `apply.lua` sets it when
it changes a count, in the same step. So every writer finds in it the last change that it has not made itself: as long
as that is the same, nobody else has changed a count of the partition.

It is no counter: a shard that comes back with older data would count up again to the same number, with other visits.
"""

from __future__ import annotations


def next_stamp(stamp: str, writer: str, watermark: str) -> str:
    """Return the stamp of a partition after this writer's apply, given the one before it; `apply.lua` does the same."""
    return f"{writer}/{watermark} {others_change(stamp, writer)}"


def others_change(stamp: str, writer: str) -> str:
    """Return the last change of a partition that another writer than this one has made; "" for none."""
    last, _, before = stamp.partition(" ")
    return before if last.startswith(f"{writer}/") else last
