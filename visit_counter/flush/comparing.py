"""Compares each partition's watermark with the sealed segments: which visits it lacks or has lost, and whose it is."""

from __future__ import annotations

import logging
import secrets
from typing import TYPE_CHECKING, NamedTuple

from visit_counter.flush.unsound import describe_none, describe_strange, strange_ones, take_for_confirmed
from visit_counter.model.visits import Tally
from visit_counter.shards.contract import NO_WATERMARK, NOT_A_PARTITION, Batch, is_base, segment_of

if TYPE_CHECKING:
    from visit_counter.flush.findings import Findings
    from visit_counter.flush.sealed import SealedSegments
    from visit_counter.journal.checkpoint import Checkpoint
    from visit_counter.journal.segments import Journal
    from visit_counter.shards.router import ShardedStore

log = logging.getLogger(__name__)


class Rollback(NamedTuple):
    """A partition that includes the segments up to `have` now, and included them up to `had` before."""

    partition: int
    have: int
    had: int


class Comparison:
    """The watermarks of one flush, and what follows from them; this is noted in the state, which is saved later."""

    def __init__(
        self, journal: Journal, store: ShardedStore, state: Checkpoint, sealed: SealedSegments, findings: Findings
    ) -> None:
        self.journal, self.store, self.state = journal, store, state
        self.sealed, self.findings = sealed, findings
        self.unreached: set[int] = set()  # partitions whose watermark could not be read
        self._rollbacks: list[Rollback] = []
        # Partitions whose watermark no flush wrote, each with the segment that the watermark is taken to mean.
        self._strange: dict[int, int] = {}

    def plan(self, partitions: list[int]) -> list[Batch]:
        """Return the batches that bring every reachable partition up to date."""
        found, errors = self.store.watermarks_of_reachable(self.state.writer, partitions)
        for error in errors:
            self.findings.fail(error.store, str(error))
        self._sort_out(found)
        self.unreached = set(partitions) - found.keys()
        if any(self._is_foreign(partition, watermark) for partition, watermark in found.items()):
            self._become_another_writer(found)
            found = dict.fromkeys(found, NO_WATERMARK)
            self._strange.clear()
        target = next(reversed(self.sealed.tokens.values()))
        batches = [self._batch(partition, watermark, target) for partition, watermark in found.items()]
        self._report_rollbacks()
        return [batch for batch in batches if batch.visits or batch.partition in self._strange]

    def _sort_out(self, found: dict[int, str]) -> None:
        """Report watermarks that no flush wrote, and leave out keys that hold something other than a partition."""
        blocked = [partition for partition in self.state.blocked if partition not in found]
        for partition, watermark in strange_ones(found).items():
            shard = self.store.shard_of(partition)
            if watermark == NOT_A_PARTITION:
                del found[partition]
                text = describe_none(partition, shard)
                self.findings.failures.add(text)
                blocked.append(partition)
                if partition not in self.state.blocked:
                    self.findings.damage(text, again=True)
            else:
                number = self._strange[partition] = take_for_confirmed(self.state, partition, watermark)
                self.findings.damage(describe_strange(partition, shard, watermark, number))
        self.state.blocked = blocked

    def _batch(self, partition: int, watermark: str, target: str) -> Batch:
        """Return the visits that a partition lacks; note a loss."""
        confirmed = self.state.confirmed.get(partition, NO_WATERMARK)
        have = self._strange[partition] if partition in self._strange else segment_of(watermark)
        if watermark == NO_WATERMARK and is_base(confirmed):
            have = segment_of(confirmed)
        had = segment_of(confirmed)
        if have < had:
            # What it has lost is sent again, and is unpersisted until the shard confirms that it is on its disk.
            self.state.unpersisted[partition] = min(self.state.unpersisted.get(partition, (have, have)), (have, have))
            self._rollbacks.append(Rollback(partition, have, had))
            if self._is_lost(partition, have):
                # Some of the lost visits are in no file any more. Counting goes on from the count that the shard has.
                self.state.confirmed[partition] = f"{have}:"
                self.state.lost[partition] = self.state.lost.get(partition, 0) + 1
            if partition in self.state.lost:
                # The shard may also have lost the field `losses`, which reports earlier losses: it is written again.
                self.state.untold = sorted({*self.state.untold, partition})
        else:
            # The segments from its watermark to the floor held no visits of this partition.
            have = max(have, self.state.floor)
            if watermark and partition not in self._strange:
                self.state.confirm(partition, watermark)
        visits = Tally()
        for segment in self.sealed.tokens:
            if segment.last > have and (more := self.sealed.content_of(segment).get(partition)):
                visits.merge(more)
        if not visits and have < had and partition not in self._strange:
            # There are no visits to send, so no watermark is written. Counting goes on from the count the shard has.
            self.state.confirmed[partition] = watermark or f"{have}:"
        return Batch(partition, watermark, target, visits)

    def _is_lost(self, partition: int, have: int) -> bool:
        """Return whether a segment behind number `have` that held visits of the partition was deleted."""
        return have < self.state.forgotten.get(partition, 0)

    def _report_rollbacks(self) -> None:
        """Report, with a line for each shard that came back with older data, whether visits are lost."""
        by_shard: dict[tuple[str, bool], list[Rollback]] = {}
        for rollback in self._rollbacks:
            lost = self._is_lost(rollback.partition, rollback.have)
            by_shard.setdefault((self.store.shard_of(rollback.partition), lost), []).append(rollback)
        for (shard, lost), found in by_shard.items():
            what = (
                f"{len(found)} partitions of {shard} are back at segment {min(one.have for one in found)} or later, "
                f"after {max(one.had for one in found)}"
            )
            if lost:
                self.state.losses += 1
                oldest = min(self.sealed.tokens).first
                self.findings.damage(f"{what}: visits are lost, since the oldest segment retained whole is {oldest}")
            else:
                log.warning("%s: they are made whole from the retained segments", what)

    # -- a journal that somebody copied or restored -----------------------------------------------------------------

    def _is_foreign(self, partition: int, watermark: str) -> bool:
        """Return whether a watermark under our id belongs to no segment that this journal has sealed."""
        if watermark in (NO_WATERMARK, self.state.confirmed.get(partition)) or partition in self._strange:
            return False
        number = segment_of(watermark)
        if number >= self.sealed.current:
            # This journal has sent neither the current segment nor a later one. It may have sent any earlier one, also
            # one that is in doubt now.
            return True
        return any(segment.last == number and token != watermark for segment, token in self.sealed.tokens.items())

    def _become_another_writer(self, found: dict[int, str]) -> None:
        """Go on under a new id, so that a shard takes no visit of this journal for one of the other journal."""
        foreign = {p: w for p, w in found.items() if self._is_foreign(p, w)}
        for partition, watermark in found.items():
            if watermark and partition not in foreign and partition not in self._strange:
                self.state.confirmed[partition] = watermark
        partition, watermark = next(iter(foreign.items()))
        visits = self.sealed.total_of(foreign)
        self.findings.damage(
            f"another journal uses this writer's id {self.state.writer} (a copied or restored data directory): "
            f"{len(foreign)} partitions, e.g. {partition} at {watermark}; going on under a new id; "
            f"up to {visits} visits may be counted twice"
        )
        self.state.save(self.journal.state_path)
        self.journal.rename_writer(secrets.token_hex(8))
        self.adopt_writer()

    def adopt_writer(self) -> None:
        """Take the writer's id from the journal. Under a new id, the partitions have no watermark of ours yet."""
        writer = self.journal.writer
        if self.state.writer not in ("", writer):
            self.state.confirmed = {p: f"{segment_of(token)}:" for p, token in self.state.confirmed.items()}
            self.findings.changed = True
        if not self.state.writer:
            self.state.forget_attempts(segment.last for segment in self.journal.segments()[:-1])
        if self.state.writer != writer:
            self.state.writer = writer
            self.state.save(self.journal.state_path)
