"""Which shard owns a page: page -> partition -> ring -> shard. Pure, and the same on any machine and Python.

A partition is a fixed slice of all pages and never changes. The ring is consistent hashing (Karger et al., 1997):
every shard stands on a circle at POINTS_PER_SHARD places, and a partition belongs to the first place at or after its
own. A new shard takes over only the arcs that end in its own places, so no partition moves between two others.
Places come from the shard's name alone: a shard may change its address, and the order of the names does not matter.

Changing any constant here moves counts away from the shards that hold them; a test pins them all.
"""

from __future__ import annotations

from bisect import bisect_left
from hashlib import blake2b
from typing import TYPE_CHECKING
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PARTITIONS = 4096
# More places even out the shares: with 1024 the circle adds about 3 % to the spread of a shard's share, less than
# the partitions' own (4.7 % with ten shards), so that more places would no longer help.
POINTS_PER_SHARD = 1024
# Chosen because it gives each of the default shards, redis_7070 and redis_7071, close to half of the partitions.
_SALT = b"visits 2"

_POINT_BYTES = 8
_POINTS_PER_DIGEST = 64 // _POINT_BYTES


def partition_of(page: str) -> int:
    """Return the partition of a page; CRC-32 as in zlib, over the page's UTF-8."""
    return crc32(page.encode()) % PARTITIONS


class Ring:
    """The owner of every partition, given the names of the shards."""

    def __init__(self, names: Sequence[str]) -> None:
        if not names:
            raise ValueError("a ring needs at least one shard")
        if len(set(names)) != len(names):
            raise ValueError(f"shards on a ring need different names: {', '.join(names)}")
        # Two shards at one place (hardly ever) are ordered by name, on every machine alike.
        places = sorted((point, name) for name in names for point in _points_of(name))
        points = [point for point, _ in places]
        self.owners: tuple[str, ...] = tuple(
            places[bisect_left(points, _position_of(partition)) % len(places)][1] for partition in range(PARTITIONS)
        )

    def shard_of(self, partition: int) -> str:
        """Return the name of the shard that owns this partition."""
        return self.owners[partition]


def _points_of(name: str) -> Iterator[int]:
    """Give the places of a shard on the circle of 2**64 places; one digest makes eight of them."""
    for block in range(POINTS_PER_SHARD // _POINTS_PER_DIGEST):
        digest = blake2b(b"%d %b" % (block, name.encode()), salt=_SALT).digest()
        for start in range(0, len(digest), _POINT_BYTES):
            yield int.from_bytes(digest[start : start + _POINT_BYTES], "big")


def _position_of(partition: int) -> int:
    """Return the place of a partition: they stand at even distances, the shards' places being random already."""
    return partition * (2**64 // PARTITIONS)
