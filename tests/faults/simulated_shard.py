"""A shard for the simulation: it loses replies, hangs, executes late, goes down, and comes back with older data.

Somebody may also write into it what is no count, no watermark or no partition, and mend that later.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from visit_counter.errors import StoreRefusedError, StoreUnavailableError
from visit_counter.model.visits import Tally
from visit_counter.shards.contract import (
    NO_WATERMARK,
    NOT_A_PARTITION,
    Applied,
    Batch,
    Look,
    Store,
    Stored,
    is_token,
    segment_of,
)
from visit_counter.shards.ring import partition_of
from visit_counter.shards.stamps import next_stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

Key = tuple[str, int]


class Shard:
    """The data of one server and the order in which it changed. `loss`: how likely an exchange fails."""

    def __init__(self, random: Random, *, tells_disk: bool) -> None:
        self.random = random
        self.tells_disk = tells_disk  # whether `persist` works; a shard that cannot tell is not rolled back
        self.down = False
        self.loss = 0.0
        self.epoch = 0  # raised by a restart: all connections are lost
        self.counts: dict[str, int] = {}
        self.marks: dict[Key, str] = {}
        self.unsound: set[str] = set()  # pages in whose place somebody wrote what is no count
        self.blocked: set[int] = set()  # partitions in whose place there is something else
        self.late: list[tuple[str, Batch]] = []  # sent, not executed, and nobody waits for it any more
        self.losses: dict[int, int] = {}
        self.stamps: dict[int, str] = {}
        self._log: list[Callable[[], None]] = []  # what takes each change back
        self._on_disk = 0

    def execute(self, writer: str, batch: Batch) -> str:
        """Apply as the script does: one batch, whole or not at all, guarded by the watermark."""
        key = (writer, batch.partition)
        present = self.marks.get(key, NO_WATERMARK)
        if present == batch.watermark:
            self._log.append(lambda: None)
        if present == batch.watermark or present != batch.expected:
            return present
        before: dict[str, int] = {}
        self._note(before, key, present)
        for page, visits in batch.visits.increments():
            name = aside(page) if page in self.unsound else page
            before[name] = self.counts.get(name, 0)
            self.counts[name] = before[name] + visits
        self.marks[key] = batch.watermark
        self.stamps[batch.partition] = next_stamp(self.stamps.get(batch.partition, ""), writer, batch.watermark)
        return batch.watermark

    def mend(self) -> None:
        """Let a person mend everything, and count what was set aside."""
        for page in self.unsound:
            name = aside(page)
            before = {page: self.counts.get(page, 0), name: self.counts.get(name, 0)}
            self._note(before, ("", 0), NO_WATERMARK, page)
            self.counts |= {page: before[page] + before[name], name: 0}
        self.unsound.clear()
        self.blocked.clear()

    def raise_losses(self, partition: int, by: int) -> None:
        """Raise the losses of a partition."""
        before = self.losses.get(partition, 0)
        self.losses[partition] = before + by
        self._log.append(lambda: self.losses.update({partition: before}))

    def _note(self, counts: dict[str, int], key: Key, mark: str, *unsound: str) -> None:
        """Remember what a change replaced, and which pages were unsound before it."""
        stamp = self.stamps.get(key[1], "")

        def undo() -> None:
            self.counts |= counts
            self.marks[key] = mark
            self.stamps[key[1]] = stamp
            self.unsound.update(unsound)

        self._log.append(undo)

    @property
    def changes(self) -> int:
        """How many changes there were: an offset in the append-only file."""
        return len(self._log)

    def sync(self, offset: int) -> None:
        """Put the changes up to an offset on the disk."""
        self._on_disk = max(self._on_disk, min(offset, len(self._log)))

    def roll_back(self) -> int:
        """Crash and come back with any state that the disk may have; return how many changes were lost."""
        self.epoch += 1
        if not self.tells_disk:
            return 0
        keep = self.random.randint(self._on_disk, len(self._log))
        lost = len(self._log) - keep
        while len(self._log) > keep:
            self._log.pop()()
        return lost

    def execute_late(self) -> None:
        """Execute one of the requests that are still on their way."""
        if self.late and not self.down:
            writer, batch = self.late.pop(self.random.randrange(len(self.late)))
            if batch.partition not in self.blocked:
                self.execute(writer, batch)


def aside(page: str) -> str:
    """Return the field in which visits of a page are set aside."""
    return f"\taside\t{page}"


class ShardClient(Store):
    """One process's connection to a shard, with what the real client knows about the shard's disk."""

    def __init__(self, name: str, shard: Shard, point: Callable[[str], None]) -> None:
        self.name = name
        self._shard, self._point = shard, point
        self._epoch = shard.epoch
        self._offset = 0  # of this connection's last write: what WAITAOF waits for
        self._vouched: dict[Key, str] = {}  # applied and not known to be on the disk

    def add(self, page: str, visits: int) -> int:
        """Unused: the simulation counts through the journal."""
        raise NotImplementedError

    def read(self, writer: str, pages: Sequence[str]) -> list[Stored]:
        """Read; others may run just before and just after the shard looks."""
        self._point("read")
        self._reach()
        shard = self._shard
        if any(
            page in shard.unsound
            or partition_of(page) in shard.blocked
            or not is_token(shard.marks.get((writer, partition_of(page)), NO_WATERMARK))
            for page in pages
        ):
            raise StoreRefusedError(self.name, "there is no count")
        found = [Stored(shard.counts.get(page, 0), *self._look(writer, partition_of(page))) for page in pages]
        self._point("read done")
        self._reach()
        return found

    def look(self, writer: str, partitions: Sequence[int]) -> list[Look | None]:
        """Look; others may run just before and just after the shard does."""
        self._point("look")
        found: list[Look | None] = [self._look(writer, partition) for partition in partitions]
        self._point("look done")
        try:
            self._reach()
        except StoreUnavailableError:
            return [None] * len(partitions)
        return [
            None if look is None or at in self._shard.blocked or not is_token(look.watermark) else look
            for at, look in zip(partitions, found, strict=True)
        ]

    def _look(self, writer: str, partition: int) -> Look:
        shard = self._shard
        mark = shard.marks.get((writer, partition), NO_WATERMARK)
        return Look(mark, shard.losses.get(partition, 0), shard.stamps.get(partition, ""))

    def apply(self, writer: str, batches: Iterable[Batch]) -> list[Applied]:
        """Apply; each batch may be lost on the way there, executed later, or lose its reply."""
        results: list[Applied] = []
        for batch in batches:
            self._point("apply")
            results.append(self._apply(writer, batch))
        return results

    def watermarks(self, writer: str, partitions: Sequence[int]) -> list[str]:
        """Read watermarks."""
        self._reach()
        shard = self._shard
        marks = [shard.marks.get((writer, partition), NO_WATERMARK) for partition in partitions]
        return [NOT_A_PARTITION if at in shard.blocked else mark for at, mark in zip(partitions, marks, strict=True)]

    def raise_losses(self, by: Mapping[int, int]) -> set[int]:
        """Raise losses; the shard may do so and the reply get lost."""
        told = set()
        for partition, number in by.items():
            self._point("raise losses")
            shard = self._shard
            if shard.down or partition in shard.blocked:
                continue
            failed = shard.random.random() < shard.loss
            if not failed or shard.random.random() < 0.5:
                shard.raise_losses(partition, number)
            if not failed:
                told.add(partition)
        return told

    def persist(self, timeout_seconds: float) -> bool | None:  # noqa: ARG002 - the contract's argument
        """Vouch for what this client applied, as the real one does with WAITAOF."""
        self._point("persist")
        shard = self._shard
        if not shard.tells_disk:
            return None
        if shard.down or shard.random.random() < shard.loss:
            return False
        if self._epoch != shard.epoch:
            self._epoch, self._offset = shard.epoch, 0
            for (writer, partition), mark in self._vouched.items():
                present = shard.marks.get((writer, partition), NO_WATERMARK)
                if present != mark and not (is_token(present) and segment_of(present) > segment_of(mark)):
                    return False
                shard.execute(writer, Batch(partition, present, present, Tally()))
                self._offset = shard.changes
        shard.sync(self._offset)
        self._vouched.clear()
        return True

    def ping(self) -> bool:
        """Tell whether the shard is there."""
        return not self._shard.down

    def close(self) -> None:
        """Nothing is held."""

    def _reach(self) -> None:
        if self._shard.down or self._shard.random.random() < self._shard.loss:
            raise StoreUnavailableError(self.name, "no answer")

    def _apply(self, writer: str, batch: Batch) -> Applied:
        shard = self._shard
        failed = Applied(batch.partition, NO_WATERMARK, f"{self.name}: no answer")
        if shard.down:
            return failed
        if shard.random.random() < shard.loss:
            what = 1.0 if batch.partition in shard.blocked else shard.random.random()
            if what < 0.4:
                shard.execute(writer, batch)
            elif what < 0.7:
                shard.late.append((writer, batch))
            return failed
        if batch.partition in shard.blocked:
            return failed._replace(error=f"{self.name}: there is something else", refused=True)
        present = shard.execute(writer, batch)
        if present == batch.watermark:
            if self._epoch == shard.epoch:
                self._offset = shard.changes
            self._vouched[writer, batch.partition] = present
        pages = tuple(page for page, _ in batch.visits.increments() if page in shard.unsound)
        return Applied(batch.partition, present, aside=pages)


def write_into(shard: Shard, writer: str, confirmed: Mapping[int, str], pages: Sequence[str]) -> str:
    """Let somebody write into a shard; return what. `confirmed`: the watermarks that it surely has."""
    what = shard.random.choice(("a page", "a partition", "a watermark", "a watermark", "mend"))
    page = shard.random.choice(pages)
    partition = partition_of(page)
    key = (writer, partition)
    if what == "mend":
        shard.mend()
    elif what == "a page":
        shard.unsound.add(page)
    elif what == "a partition":
        shard.blocked.add(partition)
    elif shard.marks.get(key, NO_WATERMARK) == confirmed.get(partition):
        # Where it has another one, nobody could know what it includes.
        shard.marks[key] = f"written at {shard.changes} {shard.random.random()}"
    return f"{what} ({page})"
