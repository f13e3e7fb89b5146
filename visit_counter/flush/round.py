"""One flush: it applies what the partitions lack, has it put on the disks, and confirms it. `flusher` says when."""

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
    """One flush, and what it has brought: `visits` of `pages`."""

    def __init__(self, journal: Journal, store: ShardedStore, state: Checkpoint, followed: Followed) -> None:
        self.journal, self.store, self.state = journal, store, state
        self.visits = self.pages = 0
        self.findings = Findings(state)
        self.sealed = SealedSegments(journal, state, self.findings, followed)
        self.comparison = Comparison(journal, store, state, self.sealed, self.findings)

    def run(self) -> str:
        """Seal, apply and confirm (in `state`); return what went wrong, or ""."""
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
        """Remember that the visits of these partitions in a segment are about to be dropped, being included."""
        for partition in partitions:
            self.state.forgotten[partition] = max(segment.last, self.state.forgotten.get(partition, 0))

    def _apply(self, batches: list[Batch]) -> None:
        """Send the batches; record which are confirmed and what failed."""
        # The number is noted for each shard that is sent a batch, with the layout of the moment. A partition that moves
        # to another shard takes along a watermark that may be noted for the former shard only. The layout has changed
        # then, so nothing that was noted under this one is crossed off.
        layout = self.store.layout
        owners = {batch.partition: f"{self.store.shard_of(batch.partition)}@{layout}" for batch in batches}
        number = segment_of(batches[0].watermark)
        for owner in set(owners.values()):
            self.state.attempted.setdefault(owner, []).append(number)
        # This is on the disk before anything is sent: no merge may cross a number that a partition may have got.
        self.state.save(self.journal.state_path)
        steps.step("send")
        applied = self.store.apply(self.state.writer, batches)
        steps.step("reply")
        unsure: set[str] = set()  # shards of which some partition may have got the number, or may get it later
        behind = {f"{self.store.shard_of(partition)}@{layout}" for partition in self.comparison.unreached}
        for batch, answer in zip(batches, applied, strict=True):
            owner = owners[batch.partition]
            if answer.error is not None:
                # Where this batch was refused, the partition did not go on, and may still get a number that was sent
                # to it before. Where nobody knows, it may get this one, too.
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
        """Let the readers of all hosts know which partitions have lost visits, once they have what is left of them."""
        behind = {b.partition for b in batches if self.state.confirmed.get(b.partition) != b.watermark}
        ready = [p for p in self.state.untold if p not in behind | self.comparison.unreached]
        reported = self.store.raise_losses({partition: self.state.lost[partition] for partition in ready})
        self.state.untold = [partition for partition in self.state.untold if partition not in reported]

    def _persist(self) -> None:
        """Ask the shards whether what they confirmed is on their disks; clear `state.unpersisted` where it is."""
        for partition in [p for p in self.state.unpersisted if is_base(self.state.confirmed.get(p, ":"))]:
            del self.state.unpersisted[partition]  # such a partition has no watermark that a shard could be asked for
        owned = self.store.partitions_by_store(self.state.unpersisted)
        # The shards that did not answer in this flush are left out: each would take its whole time-out once more, while
        # the others wait for it.
        mine = {name: partitions for name, partitions in owned.items() if name not in self.findings.trouble}
        # WAITAOF waits until a server has on its disk all that it did up to the last write of the connection that asks.
        # This process may have written nothing over that connection: other processes may have sent the batches. So one
        # watermark is written again to each server, unchanged; WAITAOF then waits for that write and all before it.
        marks = {name: self.store.one_per_server_of(name, partitions) for name, partitions in mine.items()}
        again = [(p, self.state.confirmed[p]) for each in marks.values() for p in each]
        written = self.store.apply(self.state.writer, [Batch(p, mark, mark, Tally()) for p, mark in again])
        there = {applied.partition: applied.watermark for applied in written if applied.error is None}
        self.store.remember_replicas_of(self.state.replicas)
        answers = self.store.persist_each(_PERSIST_SECONDS)
        self.state.replicas = self.store.replicas_by_store()
        for name, partitions in mine.items():
            # If that write was not done, a server has nothing to wait for, and says at once that all is on its disk.
            marked = all(there.get(p) == self.state.confirmed[p] for p in marks[name])
            if marked and answers[name] is not False and self._all_there(name, partitions):
                for partition in partitions:
                    del self.state.unpersisted[partition]
                    self.state.strange.pop(partition, None)

    def _all_there(self, shard: str, partitions: list[int]) -> bool:
        """Tell whether a shard still includes all it confirmed: it may have come back with less just before."""
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
        """Append an event that every process of the host replays; a lost one is made up for by the next."""
        with suppress(OSError):
            descriptor = self.journal.open(self.sealed.current)
            try:
                os.write(descriptor, encode(kind, argument.encode("ascii")))
            finally:
                os.close(descriptor)
