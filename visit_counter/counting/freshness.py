"""Which cached counts are fresh without being read again: those whose partition no other writer has changed.

A host knows its own visits; of a partition's counts it lacks only what other writers have changed. Each such change
leaves another stamp in the partition (see `shards.stamps`). A *look* reads the stamp of a partition, with its losses
and our watermark. If a look finds what a page's read found, that read is as fresh as the look; so one look serves all
pages of the partition. Every read of a page also returns these three, and so is a look.

Each time that a read finds something else in a partition, it gets a new number; each cached count keeps the number of
its read.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

from visit_counter.shards.ring import PARTITIONS
from visit_counter.shards.stamps import others_change

if TYPE_CHECKING:
    from collections.abc import Callable

    from visit_counter.shards.contract import Look

# The number of a read that no look can make fresh again.
NO_NUMBER = 0
# A partition is looked at while one of its pages was asked for less than this time ago.
_IN_USE_SECONDS = 60.0
# A person, an older version, and the profiles `redis` and `cached` change counts and leave no stamp. Their changes are
# noticed after this time, or up to twice as much, so that the pages of all partitions are not read again at once.
_TRUST_SECONDS = 300.0


class _Seen:
    """What the last look found in a partition: the last change by another writer, `losses`, and our watermark."""

    __slots__ = ("again_at", "change", "losses", "number", "until", "used_at", "watermark", "writer")

    def __init__(self, number: int, writer: str, look: Look, now: float) -> None:
        self.number, self.writer = number, writer
        self.change, self.losses, self.watermark = others_change(look.stamp, writer), look.losses, look.watermark
        self.until = 0.0  # the time until which reads with this number are fresh
        self.used_at = now
        self.again_at = now + _TRUST_SECONDS * (1 + number % PARTITIONS / PARTITIONS)


class Freshness:
    """What the last look found in each partition. A look keeps counts fresh for `seconds`; times are those of `clock`.

    All methods expect the buffer's lock to be held.
    """

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds, self._clock = seconds, clock
        self._seen: dict[int, _Seen] = {}
        self._generations = count(1)

    def clear(self) -> None:
        """Forget all partitions: no count in the cache can become fresh again without a read."""
        self._seen.clear()

    def until(self, number: int) -> float:
        """Return the time until which reads with this number are fresh, and note that their partition is in use."""
        seen = self._seen.get(number % PARTITIONS)
        if seen is None or seen.number != number:
            return 0.0
        seen.used_at = self._clock()
        return seen.until

    def due(self, soon: float) -> list[int]:
        """Return the partitions in use whose counts are fresh for less than `soon` seconds more."""
        now = self._clock()
        return [
            partition
            for partition, seen in self._seen.items()
            if seen.until < now + soon and now < seen.used_at + _IN_USE_SECONDS and now < seen.again_at
        ]

    def note_read(self, partition: int, writer: str, look: Look, asked_at: float, *, is_ours: bool) -> int:
        """Note what a read of a page has found in its partition; return the number of the read.

        `asked_at`: a time before the shard was asked. `is_ours`: the watermark is surely one of this journal's.
        """
        if not self.note_look(partition, writer, look, asked_at, is_ours=is_ours):
            number = next(self._generations) * PARTITIONS + partition
            seen = self._seen[partition] = _Seen(number, writer, look, self._clock())
            seen.until = asked_at + self._seconds
        return self._seen[partition].number

    def note_look(self, partition: int, writer: str, look: Look, asked_at: float, *, is_ours: bool) -> bool:
        """Note a look at a partition; return whether the counts that were read there before are still right."""
        seen = self._seen.get(partition)
        if seen is None or self._clock() >= seen.again_at or writer != seen.writer:
            return False
        if (others_change(look.stamp, writer), look.losses) != (seen.change, seen.losses):
            return False
        # Our own batches bring nothing that this host does not know. But a copy of the journal also uses our id.
        if look.watermark != seen.watermark and not is_ours:
            return False
        seen.watermark = look.watermark
        seen.until = max(seen.until, asked_at + self._seconds)
        return True
