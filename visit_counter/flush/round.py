"""One flush, from sealed segments to partitions: what it reads, compares, sends and learns. `flusher` says when."""

from __future__ import annotations

import logging
import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from visit_counter import steps
from visit_counter.errors import StoreError
from visit_counter.flush.unsound import (
    describe_aside,
    describe_none,
    describe_strange,
    strange_ones,
    take_for_confirmed,
)
from visit_counter.journal.checkpoint import GIVEN_UP
from visit_counter.journal.records import Replay, encode
from visit_counter.model.visits import Tally
from visit_counter.shards.contract import NO_WATERMARK, NOT_A_PARTITION, Batch, is_base, segment_of
from visit_counter.shards.ring import partition_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from visit_counter.journal.checkpoint import Checkpoint
    from visit_counter.journal.records import KnownCounts
    from visit_counter.journal.segments import Journal, Segment
    from visit_counter.shards.contract import Applied
    from visit_counter.shards.router import ShardedStore

log = logging.getLogger(__name__)

_PERSIST_SECONDS = 2.0
_MOST_REASONS = 8
# Of more missing segments than this only the first ones are remembered.
_MOST_MISSING = 1000

ByPartition = dict[int, Tally]


class Rollback(NamedTuple):
    """A partition that includes the segments up to `have`, and had included them up to `had`."""

    partition: int
    have: int
    had: int


class Round:
    """One flush: what it read, sent and learnt."""

    def __init__(self, journal: Journal, store: ShardedStore, state: Checkpoint) -> None:
        self.journal, self.store, self.state = journal, store, state
        self.visits = self.pages = 0
        self.failures: set[str] = set()
        self.trouble: dict[str, str] = {}  # the shards that did not get everything, and why
        self.changed = False  # the processes of this host should read the state again
        self.sealed: dict[Segment, str] = {}  # sealed segments, oldest first, and their tokens
        self.content: dict[Segment, ByPartition] = {}
        self.known: dict[Segment, KnownCounts] = {}  # what was read of pages, of the segments after the floor
        self._rollbacks: list[Rollback] = []
        self._unreached: set[int] = set()  # partitions whose watermark could not be read
        self._strange: dict[int, int] = {}  # partitions whose watermark no flush wrote, and what it is taken for
        self.current = 0  # the segment that visits are appended to now

    def run(self) -> str:
        """Seal, apply and confirm (in `state`); return what went wrong, or ""."""
        self._adopt_writer()
        self._seal()
        partitions = sorted(self._with_visits() | self.state.confirmed.keys())
        if not self.sealed or not partitions:
            return self._error()
        plan = self._plan(partitions)
        if plan:
            self._apply(plan)
        self._report_losses(plan)
        if not self.failures:
            self.state.attempted.clear()
        self._move_floor()
        self._persist()
        return self._error()

    def _error(self) -> str:
        """Return what went wrong, in a text that stays short whatever did."""
        reasons = sorted(self.failures)
        more = [f"and {len(reasons) - _MOST_REASONS} more"] if len(reasons) > _MOST_REASONS else []
        return "; ".join(reasons[:_MOST_REASONS] + more)

    def _fail(self, shard: str, reason: str) -> None:
        """Note that a shard did not get everything; each of its partitions may have a reason of its own."""
        text = reason if reason.startswith((f"{shard}:", f"{shard} (")) else f"{shard}: {reason}"
        self.trouble.setdefault(shard, text)
        self.failures.add(text)

    # -- seal ----------------------------------------------------------------------------------------------------

    def _seal(self) -> None:
        """Read the segments that are not wholly included; seal the current one if it holds visits."""
        segments, doubtful = self.journal.segments(), self.journal.find_doubtful()
        # A journal that begins with its second segment has lost its first one: it is made before anything else.
        number = self.state.floor + 1 if self.state.floor or (segments and segments[0].first == 2) else 0
        for segment in segments:
            if 0 < number < segment.first and not self._go_on_without(number, segment.first - 1):
                number = segments[-1].last
                break
            self.state.missing.pop(segment.last, None)
            number = segment.last + 1
            if segment.last <= self.state.floor:
                self.sealed[segment] = self.journal.token_of(segment)
                continue
            # The last one has no seal, since the next is made before it. It is read once, when it is sealed.
            is_last = segment == segments[-1]
            replay = Replay() if is_last else self.journal.read(segment)
            if not replay.sealed_as:
                number = segment.last
                holds = self.journal.holds_visits(segment) if is_last else bool(replay.visits)
                if not holds and not self.journal.is_followed(segment):
                    break
                try:
                    replay = self.journal.seal(segment)
                except OSError as error:
                    # A full disk, mostly: what is sealed already is flushed all the same, and forgetting it gives room.
                    self.failures.add(f"segment {segment.last} cannot be sealed: {error.strerror or error}")
                    break
                steps.step("seal")
                number += 1
            if segment in doubtful or not self.journal.is_whole(replay):
                self.failures.add(f"segment {segment.last} is being written anew")
                number = segments[-1].last
                break
            self._keep(segment, replay)
        self.current = max(number, self.state.floor + 1)

    def _go_on_without(self, first: int, last: int) -> bool:
        """Tell whether nobody has written these missing segments anew, who may know what was in them."""
        missing = self.state.missing
        numbers = range(first, min(last + 1, first + _MOST_MISSING))
        for number in numbers:
            missing.setdefault(number, self.journal.now())
        if not all(missing[number] == GIVEN_UP or self.journal.is_settled(missing[number]) for number in numbers):
            self.failures.add(f"journal segments {first} to {last} are missing")
            return False
        missing.update(dict.fromkeys(numbers, GIVEN_UP))
        self._damage(f"journal segments {first} to {last} are missing")
        return True

    def _keep(self, segment: Segment, replay: Replay) -> None:
        if replay.unreadable:
            self._damage(f"journal segment {segment.last}: {replay.unreadable} unreadable lines were skipped")
        if replay.lines > 2 * (len(replay.visits) + len(replay.known)) + 8 or replay.unreadable:
            try:
                self.journal.write_segment(segment, replay.visits, replay.sealed_as, replay.known)
            except OSError as error:
                log.warning("segment %d stays as it is: %s", segment.last, error.strerror)
        self.journal.sync(segment)
        self.sealed[segment] = replay.sealed_as
        self.content[segment] = replay.visits.split(partition_of)
        self.known[segment] = replay.known

    def _with_visits(self) -> set[int]:
        """Return the partitions that have visits in a segment after the floor."""
        return {partition for content in self.content.values() for partition in content}

    # -- plan ----------------------------------------------------------------------------------------------------

    def _plan(self, partitions: list[int]) -> list[Batch]:
        """Return the batches that bring every reachable partition up to date."""
        found, errors = self.store.watermarks_of_reachable(self.state.writer, partitions)
        for error in errors:
            self._fail(error.store, str(error))
        self._sort_out(found)
        self._unreached = set(partitions) - found.keys()
        if any(self._is_foreign(partition, watermark) for partition, watermark in found.items()):
            self._become_another_writer(found)
            found = dict.fromkeys(found, NO_WATERMARK)
            self._strange.clear()
        target = next(reversed(self.sealed.values()))
        batches = [self._batch(partition, watermark, target) for partition, watermark in found.items()]
        self._report_rollbacks()
        return [batch for batch in batches if batch.visits or batch.partition in self._strange]

    def _sort_out(self, found: dict[int, str]) -> None:
        """Tell of watermarks that no flush wrote, and leave out what is no partition."""
        blocked = [partition for partition in self.state.blocked if partition not in found]
        for partition, watermark in strange_ones(found).items():
            shard = self.store.shard_of(partition)
            if watermark == NOT_A_PARTITION:
                del found[partition]
                text = describe_none(partition, shard)
                self.failures.add(text)
                blocked.append(partition)
                if partition not in self.state.blocked:
                    self._damage(text, again=True)
            else:
                number = self._strange[partition] = take_for_confirmed(self.state, partition, watermark)
                self._damage(describe_strange(partition, shard, watermark, number))
        self.state.blocked = blocked

    def _batch(self, partition: int, watermark: str, target: str) -> Batch:
        """Return what a partition lacks; note what it has lost."""
        confirmed = self.state.confirmed.get(partition, NO_WATERMARK)
        have = self._strange[partition] if partition in self._strange else segment_of(watermark)
        if watermark == NO_WATERMARK and is_base(confirmed):
            have = segment_of(confirmed)
        had = segment_of(confirmed)
        if have < had:
            # Not on its disk, until it is sent again and the shard says so.
            self.state.unpersisted[partition] = min(self.state.unpersisted.get(partition, (have, have)), (have, have))
            self._rollbacks.append(Rollback(partition, have, had))
            if self._is_lost(partition, have):
                # Counting goes on from what the shard has.
                self.state.confirmed[partition] = f"{have}:"
                self.state.lost[partition] = self.state.lost.get(partition, 0) + 1
            if partition in self.state.lost:
                # Perhaps the shard has lost, too, what readers were told before.
                self.state.untold = sorted({*self.state.untold, partition})
        else:
            # What is at or below the floor and not above our watermark was never for this partition.
            have = max(have, self.state.floor)
            if watermark and partition not in self._strange:
                self._confirm(partition, watermark)
        visits = Tally()
        for segment in self.sealed:
            if segment.last > have and (more := self.content_of(segment).get(partition)):
                visits.merge(more)
        if not visits and have < had and partition not in self._strange:
            # Nothing is left to send. Counting goes on from what the shard has.
            self.state.confirmed[partition] = watermark or f"{have}:"
        return Batch(partition, watermark, target, visits)

    def _confirm(self, partition: int, watermark: str) -> None:
        """Record what a partition includes; it may fall back to what it had until its shard has it on disk."""
        before = self.state.confirmed.get(partition, NO_WATERMARK)
        if watermark != before:
            self.state.confirmed[partition] = watermark
            number = segment_of(before)
            self.state.unpersisted.setdefault(partition, (number, max(number, self.state.floor)))

    def content_of(self, segment: Segment) -> ByPartition:
        """Return the visits of a sealed segment; an included one is read when it is asked for."""
        if segment not in self.content:
            self.content[segment] = self.journal.read(segment).visits.split(partition_of)
        return self.content[segment]

    def _is_lost(self, partition: int, have: int) -> bool:
        """Tell whether visits of a partition after a watermark that it had are no longer retained."""
        return have < self.state.forgotten.get(partition, 0)

    def note_forgotten(self, segment: Segment, partitions: Iterable[int]) -> None:
        """Remember that the visits of these partitions in a segment are about to be dropped, being included."""
        for partition in partitions:
            self.state.forgotten[partition] = max(segment.last, self.state.forgotten.get(partition, 0))

    def _report_rollbacks(self) -> None:
        """Tell, in a line for each shard, which ones came back with older data, and whether visits are lost."""
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
                oldest = min(self.sealed).first
                self._damage(f"{what}: visits are lost, since the oldest segment retained whole is {oldest}")
            else:
                log.warning("%s: they are made whole from the retained segments", what)

    # -- a journal that somebody copied or restored -----------------------------------------------------------------

    def _is_foreign(self, partition: int, watermark: str) -> bool:
        """Tell whether a watermark under our id is not of a segment that we sealed."""
        if watermark in (NO_WATERMARK, self.state.confirmed.get(partition)) or partition in self._strange:
            return False
        number = segment_of(watermark)
        if number >= self.current:
            return True  # nothing after the last sealed segment was ever sent; one that is in doubt now may have been
        return any(segment.last == number and token != watermark for segment, token in self.sealed.items())

    def _become_another_writer(self, found: dict[int, str]) -> None:
        """Go on under a new id, so that no visit is taken for one of the other journal's."""
        foreign = {p: w for p, w in found.items() if self._is_foreign(p, w)}
        for partition, watermark in found.items():
            if watermark and partition not in foreign and partition not in self._strange:
                self.state.confirmed[partition] = watermark
        partition, watermark = next(iter(foreign.items()))
        visits = sum(content[p].total for content in self.content.values() for p in foreign if p in content)
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
            self.changed = True
        if not self.state.writer:
            self.state.forget_attempts(segment.last for segment in self.journal.segments()[:-1])
        if self.state.writer != writer:
            self.state.writer = writer
            self.state.save(self.journal.state_path)

    # -- apply ---------------------------------------------------------------------------------------------------

    def _apply(self, batches: list[Batch]) -> None:
        """Send the batches; record which are confirmed and what failed."""
        # Attempts are noted by shard under the layout of the moment: a partition may move to another shard and take
        # a number along as its watermark that was noted for the former one.
        layout = self.store.layout
        owners = {batch.partition: f"{self.store.shard_of(batch.partition)}@{layout}" for batch in batches}
        number = segment_of(batches[0].watermark)
        for owner in set(owners.values()):
            self.state.attempted.setdefault(owner, []).append(number)
        # Durable before anything is sent: no merge may cross a number that a partition may have got.
        self.state.save(self.journal.state_path)
        steps.step("send")
        applied = self.store.apply(self.state.writer, batches)
        steps.step("reply")
        unsure: set[str] = set()  # some of its partitions may have got the number now, or may get it later
        behind = {f"{self.store.shard_of(partition)}@{layout}" for partition in self._unreached}
        for batch, answer in zip(batches, applied, strict=True):
            owner = owners[batch.partition]
            if answer.error is not None:
                # A number that a partition was sent before may still reach it, unless it goes on.
                (behind if answer.refused else unsure).add(owner)
                self._fail(self.store.shard_of(batch.partition), answer.error)
            elif answer.watermark != batch.watermark:
                unsure.add(owner)
                self.failures.add(
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
        self._confirm(batch.partition, batch.watermark)
        self.visits += batch.visits.total
        self.pages += len(batch.visits)
        if answer.aside or self.state.uncounted:
            before = set(self.state.uncounted)
            self.state.uncounted = sorted((before - batch.visits.keys()) | set(answer.aside))
            if new := [page for page in answer.aside if page not in before]:
                self._damage(describe_aside(batch.partition, self.store.shard_of(batch.partition), new), again=True)

    def _report_losses(self, batches: list[Batch]) -> None:
        """Let the readers of all hosts know which partitions have lost visits, once they have what is left of them."""
        behind = {b.partition for b in batches if self.state.confirmed.get(b.partition) != b.watermark}
        ready = [p for p in self.state.untold if p not in behind | self._unreached]
        reported = self.store.raise_losses({partition: self.state.lost[partition] for partition in ready})
        self.state.untold = [partition for partition in self.state.untold if partition not in reported]

    def _persist(self) -> None:
        """Ask the shards whether what they confirmed is on their disks; clear `state.unpersisted` where it is."""
        for partition in [p for p in self.state.unpersisted if is_base(self.state.confirmed.get(p, ":"))]:
            del self.state.unpersisted[partition]  # it has no watermark that could be asked for
        owned = self.store.partitions_by_store(self.state.unpersisted)
        # Leave out the shards that did not answer in this flush: each would take its whole time-out again while the
        # others wait.
        mine = {name: partitions for name, partitions in owned.items() if name not in self.trouble}
        # WAITAOF covers the last write of this connection and everything before it. So write once to each server: that
        # covers other processes' batches too.
        marks = {name: self.store.one_per_server_of(name, partitions) for name, partitions in mine.items()}
        again = [(p, self.state.confirmed[p]) for each in marks.values() for p in each]
        written = self.store.apply(self.state.writer, [Batch(p, mark, mark, Tally()) for p, mark in again])
        there = {applied.partition: applied.watermark for applied in written if applied.error is None}
        self.store.remember_replicas_of(self.state.replicas)
        answers = self.store.persist_each(_PERSIST_SECONDS)
        self.state.replicas = self.store.replicas_by_store()
        for name, partitions in mine.items():
            # Without that write a server has nothing to wait for, and says at once that it is done.
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
        for segment in self.sealed:
            if segment.last > floor:
                behind = any(
                    segment_of(self.state.confirmed.get(partition, NO_WATERMARK)) < segment.last
                    for partition in self.content_of(segment)
                )
                if behind:
                    break
                floor = segment.last
        if floor != self.state.floor:
            self.state.floor = floor
            self.changed = True

    # -- telling -------------------------------------------------------------------------------------------------

    def announce(self, kind: bytes, argument: str) -> None:
        """Append an event that every process of the host replays; a lost one is made up for by the next."""
        with suppress(OSError):
            descriptor = self.journal.open(self.current)
            try:
                os.write(descriptor, encode(kind, argument.encode("ascii")))
            finally:
                os.close(descriptor)

    def _damage(self, text: str, *, again: bool = False) -> None:
        if self.state.note_damage(text, again=again):
            log.error("%s", text)
            self.changed = True
