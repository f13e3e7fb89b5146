"""Which cached counts are still fresh, without reading them again: as long as nobody else has changed their partition.

What a host does not know of a partition's counts is what other writers have changed. Each such change leaves another
stamp in the partition (see `shards.stamps`). So what was read of a page is as fresh as the last look at its partition
that has found the stamp of that read, and one look is enough for all its pages. Every read of a page is such a look.

What a read was under is a number: another one for each stamp that is found in a partition.
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
# Whoever leaves no stamp (a person, an older version, the profiles `redis` and `cached`) is noticed after this time, or
# up to twice as much: otherwise all pages would be read again at once.
_TRUST_SECONDS = 300.0


class _Seen:
    """What a partition was last seen to have: who else changed it last, its losses, and our watermark."""

    __slots__ = ("again_at", "change", "losses", "number", "until", "used_at", "watermark", "writer")

    def __init__(self, number: int, writer: str, look: Look, now: float) -> None:
        self.number, self.writer = number, writer
        self.change, self.losses, self.watermark = others_change(look.stamp, writer), look.losses, look.watermark
        self.until = 0.0  # what was read under this number is fresh until then
        self.used_at = now
        self.again_at = now + _TRUST_SECONDS * (1 + number % PARTITIONS / PARTITIONS)


class Freshness:
    """What was last seen of each partition. `seconds`: how long a look is good for. Times are those of `clock`.

    All methods expect the buffer's lock to be held.
    """

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds, self._clock = seconds, clock
        self._seen: dict[int, _Seen] = {}
        self._generations = count(1)

    def clear(self) -> None:
        """Forget everything: nothing that was read is made fresh again."""
        self._seen.clear()

    def until(self, number: int) -> float:
        """Return until when what was read under a number is fresh. Its partition is in use."""
        seen = self._seen.get(number % PARTITIONS)
        if seen is None or seen.number != number:
            return 0.0
        seen.used_at = self._clock()
        return seen.until

    def due(self, soon: float) -> list[int]:
        """Return the partitions in use that must be looked at within so many seconds to stay fresh."""
        now = self._clock()
        return [
            partition
            for partition, seen in self._seen.items()
            if seen.until < now + soon and now < seen.used_at + _IN_USE_SECONDS and now < seen.again_at
        ]

    def note_read(self, partition: int, writer: str, look: Look, asked_at: float, *, is_ours: bool) -> int:
        """Take note of what a read of some page says of its partition; return the number that the read was under.

        `asked_at`: a time before the shard was asked. `is_ours`: the watermark is surely one of this journal's.
        """
        if not self.note_look(partition, writer, look, asked_at, is_ours=is_ours):
            number = next(self._generations) * PARTITIONS + partition
            seen = self._seen[partition] = _Seen(number, writer, look, self._clock())
            seen.until = asked_at + self._seconds
        return self._seen[partition].number

    def note_look(self, partition: int, writer: str, look: Look, asked_at: float, *, is_ours: bool) -> bool:
        """Take note of a look at a partition; tell whether what was read there before is still fresh."""
        seen = self._seen.get(partition)
        if seen is None or self._clock() >= seen.again_at or writer != seen.writer:
            return False
        if (others_change(look.stamp, writer), look.losses) != (seen.change, seen.losses):
            return False
        # Our own applies change nothing that this host does not know. Another journal may have our id: a copied one.
        if look.watermark != seen.watermark and not is_ours:
            return False
        seen.watermark = look.watermark
        seen.until = max(seen.until, asked_at + self._seconds)
        return True
