"""The flush: from sealed segments to the partitions, exactly once.

    seal -> add up per partition -> compare watermarks -> apply -> wait for the shards' disks -> confirm -> forget

One process of a host flushes at a time (`flush.lock`). It reads the journal's files, not any process's memory, so
whoever comes next carries on where a killed one stopped. Every decision starts from the watermarks that the partitions
have now; what this host remembers of them (`state.confirmed`) only tells whether a shard lost something.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from visit_counter import steps
from visit_counter.errors import StoreError
from visit_counter.journal import FLUSHED, MERGED, Folded, Journal, Segment, encode
from visit_counter.ring import partition_of
from visit_counter.state import LastFlush, State
from visit_counter.stores.base import NO_WATERMARK, Batch, is_base, segment_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from visit_counter.stores.sharded import ShardedStore

log = logging.getLogger(__name__)

# Merge when this many sealed segments wait for a shard that is away.
MERGE_FROM = 8
_PERSIST_SECONDS = 2.0


class FlushBusyError(Exception):
    """Another process is flushing; nothing was done."""


class Flusher:
    """Flushes one journal into one sharded store. `retain_segments`: how many included segments stay on disk.

    Retained segments make a shard whole that comes back with older data; they are kept beyond that number until the
    shards have said that everything is on their disks. `max_bytes` bounds the journal: near it, fewer are retained.
    """

    def __init__(self, journal: Journal, store: ShardedStore, *, retain_segments: int = 20, max_bytes: int = 1 << 30):
        self.journal, self.store = journal, store
        self._retain = retain_segments
        self._max_bytes = max_bytes

    def flush(self, *, wait: bool = True) -> LastFlush:
        """Bring everything accepted so far into the partitions that can be reached; return how it went.

        `error` in the result names what could not be reached; those visits stay pending. Raises FlushBusyError when
        `wait` is false and another process is flushing, OSError when the journal cannot be written.
        """
        self.journal.prepare()
        with self._only_one(wait=wait):
            started = time.monotonic()
            state = State.load(self.journal.state_path)
            round_ = _Round(self.journal, self.store, state)
            error = round_.run()
            result = LastFlush(time.time(), round(time.monotonic() - started, 3), round_.visits, round_.pages, error)
            state.last_flush = result
            state.save(self.journal.state_path)
            steps.step("confirm")
            if round_.news:
                round_.announce(FLUSHED, str(state.floor))
            self._forget(state, persisted=round_.persisted)
            if error:
                round_.merge_waiting(keep=self._retain)
            return result

    @contextmanager
    def _only_one(self, *, wait: bool) -> Iterator[None]:
        descriptor = os.open(self.journal.path / "flush.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise FlushBusyError from None
            yield
        finally:
            os.close(descriptor)

    def _forget(self, state: State, *, persisted: bool) -> None:
        included = [segment for segment in self.journal.segments() if segment.last <= state.floor]
        retain = self._retain if persisted else max(self._retain, 1000)
        if self.journal.size_bytes() > self._max_bytes // 2 and persisted:
            retain = 0
        for segment in included[: max(0, len(included) - retain)]:
            steps.step("forget")
            self.journal.forget(segment)


class _Round:
    """One flush: what it read, sent and learnt."""

    def __init__(self, journal: Journal, store: ShardedStore, state: State) -> None:
        self.journal, self.store, self.state = journal, store, state
        self.visits = self.pages = 0
        self.persisted = True
        self.news = False  # the processes of this host should read the state again
        self._sealed: dict[Segment, str] = {}  # sealed segments, oldest first, and their tokens
        self._content: dict[Segment, ByPartition] = {}
        self._current = 0  # the segment that visits are appended to now

    def run(self) -> str:
        """Seal, apply and confirm (in `state`); return what went wrong, or ""."""
        self._adopt_writer()
        self._seal()
        partitions = sorted(self._with_visits() | self.state.confirmed.keys())
        if not self._sealed or not partitions:
            return ""
        plan, failures = self._plan(partitions)
        if plan:
            failures |= self._apply(plan)
        self._move_floor()
        self.persisted = self.store.persist(_PERSIST_SECONDS) is not False
        return "; ".join(sorted(failures))

    # -- seal ----------------------------------------------------------------------------------------------------

    def _seal(self) -> None:
        """Read the segments that are not wholly included; seal the current one if it holds visits."""
        number = 0
        for segment in self.journal.segments():
            if 0 < number < segment.first:
                self._damage(f"journal segments {number} to {segment.first - 1} are missing")
            number = segment.last + 1
            if segment.last <= self.state.floor:
                self._sealed[segment] = self.journal.token_of(segment)
                continue
            folded = self.journal.read(segment)
            if not folded.sealed_as:
                number = segment.last
                if not folded.visits:
                    break
                folded = self.journal.seal(segment)
                steps.step("seal")
                number += 1
            self._keep(segment, folded)
        self._current = max(number, self.state.floor + 1)

    def _keep(self, segment: Segment, folded: Folded) -> None:
        if folded.unreadable:
            self._damage(f"journal segment {segment.last}: {folded.unreadable} unreadable lines were skipped")
        if folded.lines > 2 * len(folded.visits) + 8 or folded.unreadable:
            self.journal.write_segment(segment, folded.visits, folded.sealed_as)
        else:
            self.journal.sync(segment)
        self._sealed[segment] = folded.sealed_as
        self._content[segment] = by_partition(folded.visits)

    def _with_visits(self) -> set[int]:
        """Return the partitions that have visits in a segment after the floor."""
        return {partition for content in self._content.values() for partition in content}

    # -- plan ----------------------------------------------------------------------------------------------------

    def _plan(self, partitions: list[int]) -> tuple[list[Batch], set[str]]:
        """Return the batches that bring every reachable partition up to date, and what could not be reached."""
        found: dict[int, str] = {}
        failures: set[str] = set()
        for store, mine in self.store.by_store(partitions):
            try:
                found.update(zip(mine, store.watermarks(self.state.writer, mine), strict=True))
            except StoreError as error:
                failures.add(str(error))
        if any(self._is_foreign(partition, watermark) for partition, watermark in found.items()):
            self._become_another_writer(found)
            found = dict.fromkeys(found, NO_WATERMARK)
        target = next(reversed(self._sealed.values()))
        batches = [self._batch(partition, watermark, target) for partition, watermark in found.items()]
        return [batch for batch in batches if batch.visits], failures

    def _batch(self, partition: int, watermark: str, target: str) -> Batch:
        """Return what a partition lacks; note what it has lost."""
        confirmed = self.state.confirmed.get(partition, NO_WATERMARK)
        have = segment_of(watermark)
        if watermark == NO_WATERMARK and is_base(confirmed):
            have = segment_of(confirmed)
        if have < segment_of(confirmed):
            self._note_rollback(partition, have, confirmed)
        else:
            # What is at or below the floor and not above our watermark was never for this partition.
            have = max(have, self.state.floor)
            if watermark:
                self.state.confirmed[partition] = watermark
        visits: dict[str, int] = {}
        for segment in self._sealed:
            if segment.last > have:
                for page, number in self._content_of(segment).get(partition, {}).items():
                    visits[page] = visits.get(page, 0) + number
        return Batch(partition, watermark, target, visits)

    def _content_of(self, segment: Segment) -> ByPartition:
        if segment not in self._content:
            self._content[segment] = by_partition(self.journal.read(segment).visits)
        return self._content[segment]

    def _note_rollback(self, partition: int, have: int, confirmed: str) -> None:
        shard = self.store.ring.shard_of(partition)
        oldest = min(self._sealed).first
        if have + 1 < oldest:
            self._damage(
                f"{shard} has lost visits of partition {partition}: it includes segments up to {have}, was confirmed up "
                f"to {segment_of(confirmed)}, and the oldest retained segment is {oldest}"
            )
            # Counting goes on from what the shard has.
            self.state.confirmed[partition] = f"{have}:"
        else:
            log.warning("%s came back with older data; partition %d is sent again from %d", shard, partition, have + 1)

    # -- a journal that somebody copied or restored -----------------------------------------------------------------

    def _is_foreign(self, partition: int, watermark: str) -> bool:
        """Tell whether a watermark under our id is not of a segment that we sealed."""
        if watermark in (NO_WATERMARK, self.state.confirmed.get(partition)):
            return False
        number = segment_of(watermark)
        if number > max(self._sealed).last:
            return True
        return any(segment.last == number and token != watermark for segment, token in self._sealed.items())

    def _become_another_writer(self, found: dict[int, str]) -> None:
        """Go on under a new id, so that no visit is taken for one of the other journal's."""
        foreign = {p: w for p, w in found.items() if self._is_foreign(p, w)}
        for partition, watermark in found.items():
            if watermark and partition not in foreign:
                self.state.confirmed[partition] = watermark
        partition, watermark = next(iter(foreign.items()))
        visits = sum(sum(content.get(p, {}).values()) for content in self._content.values() for p in foreign)
        self._damage(
            f"another journal uses this writer's id {self.state.writer} (a copied or restored data directory): "
            f"{len(foreign)} partitions, e.g. {partition} at {watermark}; going on under a new id; "
            f"up to {visits} visits may be counted twice"
        )
        self.state.save(self.journal.state_path)
        self.journal.rename_writer(secrets.token_hex(8))
        self._adopt_writer()

    def _adopt_writer(self) -> None:
        """Take the writer's id from the journal. Under a new id the partitions have no watermark of ours yet."""
        writer = self.journal.writer
        if self.state.writer not in ("", writer):
            self.state.confirmed = {p: f"{segment_of(token)}:" for p, token in self.state.confirmed.items()}
            self.news = True
        if self.state.writer != writer:
            self.state.writer = writer
            self.state.save(self.journal.state_path)

    # -- apply ---------------------------------------------------------------------------------------------------

    def _apply(self, batches: list[Batch]) -> set[str]:
        """Send the batches; record which are confirmed; return what failed."""
        target = segment_of(batches[0].watermark)
        if target not in self.state.attempted:
            # Durable before anything is sent: no merge may cross a number that a partition may have got.
            self.state.attempted.append(target)
            self.state.save(self.journal.state_path)
        steps.step("send")
        applied = self.store.apply(self.state.writer, batches)
        steps.step("reply")
        failures = set()
        for batch, answer in zip(batches, applied, strict=True):
            if answer.error is not None:
                failures.add(answer.error)
            elif answer.watermark != batch.watermark:
                failures.add(
                    f"partition {batch.partition} is at {answer.watermark!r} instead of {batch.expected!r}; "
                    "the next flush starts from there"
                )
            else:
                self.state.confirmed[batch.partition] = batch.watermark
                self.visits += sum(batch.visits.values())
                self.pages += len(batch.visits)
        if not failures:
            self.state.attempted = []
        return failures

    def _move_floor(self) -> None:
        """Raise the floor to the last segment whose visits all partitions include."""
        floor = self.state.floor
        for segment in self._sealed:
            if segment.last > floor:
                behind = any(
                    segment_of(self.state.confirmed.get(partition, NO_WATERMARK)) < segment.last
                    for partition in self._content_of(segment)
                )
                if behind:
                    break
                floor = segment.last
        if floor != self.state.floor:
            self.state.floor = floor
            self.news = True

    # -- merge ---------------------------------------------------------------------------------------------------

    def merge_waiting(self, keep: int) -> None:
        """Make one file of the segments that wait for a shard, but for the newest `keep`, where that is safe.

        Visits that their partition includes are left out, so the disk grows with the distinct pages that wait.
        A merge crosses no number that a partition with waiting visits has, or may have, as its watermark.
        """
        waiting = [segment for segment in self._sealed if segment.last > self.state.floor]
        waiting = waiting[: max(0, len(waiting) - keep)]
        boundaries = set(self.state.attempted)
        for segment in waiting:
            boundaries |= {number for p in self._content[segment] if (number := self._confirmed(p)) < segment.last}
        group: list[Segment] = []
        for segment in waiting:
            group.append(segment)
            if segment.last in boundaries or segment is waiting[-1]:
                if len(group) >= MERGE_FROM:
                    self._merge(group)
                group = []

    def _confirmed(self, partition: int) -> int:
        return segment_of(self.state.confirmed.get(partition, NO_WATERMARK))

    def _merge(self, group: list[Segment]) -> None:
        whole = Segment(group[0].first, group[-1].last)
        visits: dict[str, int] = {}
        for segment in group:
            for partition, pages in self._content[segment].items():
                if self._confirmed(partition) < segment.last:
                    for page, number in pages.items():
                        visits[page] = visits.get(page, 0) + number
        self.journal.write_segment(whole, visits, self._sealed[group[-1]])
        self.announce(MERGED, f"{whole.first}-{whole.last}")
        for segment in group:
            if segment != whole:
                self.journal.forget(segment)
        log.info("merged the waiting segments %d to %d into one file of %d pages", whole.first, whole.last, len(visits))

    # -- telling -------------------------------------------------------------------------------------------------

    def announce(self, kind: bytes, argument: str) -> None:
        """Append an event that every process of the host folds. Lost if the disk is full; the next one makes up for it."""
        descriptor = self.journal.open(self._current)
        try:
            os.write(descriptor, encode(kind, argument.encode("ascii")))
        finally:
            os.close(descriptor)

    def _damage(self, text: str) -> None:
        log.error("%s", text)
        self.state.note_damage(text)
        self.news = True


ByPartition = dict[int, dict[str, int]]


def by_partition(visits: dict[str, int]) -> ByPartition:
    """Return the visits of each page, by partition."""
    result: ByPartition = {}
    for page, number in visits.items():
        result.setdefault(partition_of(page), {})[page] = number
    return result

