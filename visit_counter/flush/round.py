"""One flush: it sends the partitions what they lack, waits for the shards' disks, and confirms. `flusher` calls it."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from visit_counter import steps
from visit_counter.errors import StoreError
from visit_counter.flush.comparing import Comparison
from visit_counter.flush.findings import Findings
from visit_counter.flush.sealed import SealedSegments
from visit_counter.flush.unsound import describe_aside
from visit_counter.journal.records import encode
from visit_counter.model.visits import Tally
from visit_counter.shards.contract import NO_WATERMARK, Batch, is_base, segment_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from visit_counter.flush.sealed import Followed
    from visit_counter.journal.checkpoint import Checkpoint
    from visit_counter.journal.segments import Journal, Segment
    from visit_counter.shards.contract import Applied
    from visit_counter.shards.router import ShardedStore

_PERSIST_SECONDS = 2.0


class Round:
    """One flush. It counts what it has applied: `visits`, and the `pages` in its batches."""

    def __init__(self, journal: Journal, store: ShardedStore, state: Checkpoint, followed: Followed) -> None:
        self.journal, self.store, self.state = journal, store, state
        self.visits = self.pages = 0
        self.findings = Findings(state)
        self.sealed = SealedSegments(journal, state, self.findings, followed)
        self.comparison = Comparison(journal, store, state, self.sealed, self.findings)

    def run(self) -> str:
        """Seal, apply and confirm (in `state`); return the failures in one text, or ""."""
        self.comparison.adopt_writer()
        self.sealed.seal()
        partitions = sorted(self.sealed.partitions() | self.state.confirmed.keys())
        if not self.sealed.tokens or not partitions:
            return self.findings.error
        plan = self.comparison.plan(partitions)
        if plan:
            self._apply(plan)
        self._report_losses(plan)
        if not self.findings.failures:
            self.state.attempted.clear()
        self._move_floor()
        self._persist()
        return self.findings.error

    def note_forgotten(self, segment: Segment, partitions: Iterable[int]) -> None:
        """Note that the visits of these partitions in a segment will be deleted, since the partitions include them."""
        for partition in partitions:
            self.state.forgotten[partition] = max(segment.last, self.state.forgotten.get(partition, 0))

    def _apply(self, batches: list[Batch]) -> None:
        """Send the batches; note which ones are confirmed and what failed."""
        # The segment's number is noted for each shard that receives a batch, together with the present layout. If a
        # partition moves to another shard, its watermark moves along, though only the former shard has a note of it.
        # The layout has changed by then, so no note that was made under the former layout is removed.
        layout = self.store.layout
        owners = {batch.partition: f"{self.store.shard_of(batch.partition)}@{layout}" for batch in batches}
        number = segment_of(batches[0].watermark)
        for owner in set(owners.values()):
            self.state.attempted.setdefault(owner, []).append(number)
        # The notes are on the disk before anything is sent: no merge may cross a number that may be a watermark.
        self.state.save(self.journal.state_path)
        steps.step("send")
        applied = self.store.apply(self.state.writer, batches)
        steps.step("reply")
        # Shards of which some partition may have this number as its watermark, or may have it later.
        unsure: set[str] = set()
        behind = {f"{self.store.shard_of(partition)}@{layout}" for partition in self.comparison.unreached}
        for batch, answer in zip(batches, applied, strict=True):
            owner = owners[batch.partition]
            if answer.error is not None:
                # If the shard refused this batch, the partition is where it was, and a batch that was sent earlier may
                # still change its watermark. If no reply came, this batch may do that, too.
                (behind if answer.refused else unsure).add(owner)
                self.findings.fail(self.store.shard_of(batch.partition), answer.error)
            elif answer.watermark != batch.watermark:
                unsure.add(owner)
                self.findings.failures.add(
                    f"partition {batch.partition} is at {answer.watermark!r} instead of {batch.expected!r}; "
                    "the next flush starts from there"
                )
            else:
                self._take_in(batch, answer)
        for owner in set(owners.values()) - unsure:
            self.state.attempted[owner].remove(number)
            if owner not in behind or not self.state.attempted[owner]:
                del self.state.attempted[owner]

    def _take_in(self, batch: Batch, answer: Applied) -> None:
        self.state.confirm(batch.partition, batch.watermark)
        self.visits += batch.visits.total
        self.pages += len(batch.visits)
        if answer.aside or self.state.uncounted:
            before = set(self.state.uncounted)
            self.state.uncounted = sorted((before - batch.visits.keys()) | set(answer.aside))
            if new := [page for page in answer.aside if page not in before]:
                self.findings.damage(
                    describe_aside(batch.partition, self.store.shard_of(batch.partition), new), again=True
                )

    def _report_losses(self, batches: list[Batch]) -> None:
        """Raise `losses` in partitions that have lost visits, which reports the loss to all hosts.

        This is done once a partition includes all visits that could be sent again.
        """
        behind = {b.partition for b in batches if self.state.confirmed.get(b.partition) != b.watermark}
        ready = [p for p in self.state.untold if p not in behind | self.comparison.unreached]
        reported = self.store.raise_losses({partition: self.state.lost[partition] for partition in ready})
        self.state.untold = [partition for partition in self.state.untold if partition not in reported]

    def _persist(self) -> None:
        """Wait until the confirmed batches are on the shards' disks; clear `state.unpersisted` for those that are."""
        for partition in [p for p in self.state.unpersisted if is_base(self.state.confirmed.get(p, ":"))]:
            del self.state.unpersisted[partition]  # this partition has no watermark that `_all_there` could compare
        owned = self.store.partitions_by_store(self.state.unpersisted)
        # The shards that failed in this flush are left out: each would take its whole time-out once more, and the
        # others would wait for it.
        mine = {name: partitions for name, partitions in owned.items() if name not in self.findings.trouble}
        # WAITAOF covers the last write of its own connection and everything that the server did before that write. This
        # process may have written nothing over its connection, since another process may have sent the batches. So it
        # writes one watermark again, unchanged, to each server: WAITAOF then covers the other process's batches, too.
        marks = {name: self.store.one_per_server_of(name, partitions) for name, partitions in mine.items()}
        again = [(p, self.state.confirmed[p]) for each in marks.values() for p in each]
        written = self.store.apply(self.state.writer, [Batch(p, mark, mark, Tally()) for p, mark in again])
        there = {applied.partition: applied.watermark for applied in written if applied.error is None}
        self.store.remember_replicas_of(self.state.replicas)
        answers = self.store.persist_each(_PERSIST_SECONDS)
        self.state.replicas = self.store.replicas_by_store()
        for name, partitions in mine.items():
            # If that write failed, WAITAOF has nothing to wait for and confirms at once: such an answer proves nothing.
            marked = all(there.get(p) == self.state.confirmed[p] for p in marks[name])
            if marked and answers[name] is not False and self._all_there(name, partitions):
                for partition in partitions:
                    del self.state.unpersisted[partition]
                    self.state.strange.pop(partition, None)

    def _all_there(self, shard: str, partitions: list[int]) -> bool:
        """Return whether a shard still has all confirmed watermarks: it may just have come back with older data."""
        try:
            found = self.store.watermarks_at(shard, self.state.writer, partitions)
        except StoreError:
            return False
        return found == [self.state.confirmed[partition] for partition in partitions]

    def _move_floor(self) -> None:
        """Raise the floor to the last segment whose visits all partitions include."""
        floor = self.state.floor
        for segment in self.sealed.tokens:
            if segment.last > floor:
                behind = any(
                    segment_of(self.state.confirmed.get(partition, NO_WATERMARK)) < segment.last
                    for partition in self.sealed.content_of(segment)
                )
                if behind:
                    break
                floor = segment.last
        if floor != self.state.floor:
            self.state.floor = floor
            self.findings.changed = True

    def announce(self, kind: bytes, argument: str) -> None:
        """Append an event for every process of the host. If that fails, the event of the next flush makes up for it."""
        with suppress(OSError):
            descriptor = self.journal.open(self.sealed.current)
            try:
                os.write(descriptor, encode(kind, argument.encode("ascii")))
            finally:
                os.close(descriptor)
