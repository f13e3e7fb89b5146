"""The sealed segments of one flush: seals the current segment, and gives the visits of each segment by partition."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from visit_counter import steps
from visit_counter.journal.checkpoint import GIVEN_UP
from visit_counter.journal.records import Replay
from visit_counter.shards.ring import partition_of

if TYPE_CHECKING:
    from collections.abc import Container

    from visit_counter.flush.findings import Findings
    from visit_counter.journal.checkpoint import Checkpoint
    from visit_counter.journal.records import KnownCounts
    from visit_counter.journal.segments import Journal, Segment
    from visit_counter.model.visits import Tally

log = logging.getLogger(__name__)

# If more segments are missing than this, only the first ones are noted in the state.
_MOST_MISSING = 1000

ByPartition = dict[int, "Tally"]
Followed = Callable[["Segment"], Replay | None]


class SealedSegments:
    """The sealed segments of a journal. Nothing is read before `seal`. `followed`: see `Flusher`."""

    def __init__(self, journal: Journal, state: Checkpoint, findings: Findings, followed: Followed) -> None:
        self.journal, self.state, self.findings = journal, state, findings
        self._followed = followed
        self.tokens: dict[Segment, str] = {}  # of each sealed segment, oldest first
        self.known: dict[Segment, KnownCounts] = {}  # the lines `read` of each segment after the floor
        self.current = 0  # the segment to which the processes append visits now
        self._content: dict[Segment, ByPartition] = {}

    def seal(self) -> None:
        """Read the segments after the floor; seal the current segment if it holds visits."""
        segments, doubtful = self.journal.segments(), self.journal.find_doubtful()
        # A journal that begins with segment 2 has lost segment 1: that is the first file that a new journal gets.
        number = self.state.floor + 1 if self.state.floor or (segments and segments[0].first == 2) else 0
        for segment in segments:
            if 0 < number < segment.first and not self._go_on_without(number, segment.first - 1):
                number = segments[-1].last
                break
            self.state.missing.pop(segment.last, None)
            number = segment.last + 1
            if segment.last <= self.state.floor:
                self.tokens[segment] = self.journal.token_of(segment)
                continue
            # The last segment usually has no seal, since the next segment is made before the seal is written. It is
            # read once, when it is sealed.
            is_last = segment == segments[-1]
            # If the last segment has a seal, somebody has removed the next one. The flush must not make that again: a
            # process may have the removed file open, and will write it anew with the visits in it.
            next_is_gone = is_last and bool(self.journal.token_at_end(segment))
            if next_is_gone:
                self.findings.failures.add(f"journal segment {segment.last + 1} is missing")
            is_open = is_last and not next_is_gone
            replay = Replay() if is_open else self._followed(segment) or self.journal.read(segment)
            if not replay.sealed_as:
                number = segment.last
                holds = self.journal.holds_visits(segment) if is_last else bool(replay.visits)
                if not holds and not self.journal.is_followed(segment):
                    break
                try:
                    replay = self.journal.seal(segment, self._followed)
                except OSError as error:
                    # The disk is full, usually. The segments that are sealed already are flushed all the same, and
                    # deleting them makes room.
                    self.findings.failures.add(f"segment {segment.last} cannot be sealed: {error.strerror or error}")
                    break
                steps.step("seal")
                number += 1
            if segment in doubtful or not self.journal.is_whole(replay):
                self.findings.failures.add(f"segment {segment.last} is being written anew")
                number = segments[-1].last
                break
            self._keep(segment, replay)
        self.current = max(number, self.state.floor + 1)

    def _go_on_without(self, first: int, last: int) -> bool:
        """Return whether to go on without these segments: every process had the time to write them anew, and none did.

        Until then, the flush stops before them.
        """
        missing = self.state.missing
        numbers = range(first, min(last + 1, first + _MOST_MISSING))
        for number in numbers:
            missing.setdefault(number, self.journal.now())
        if not all(missing[number] == GIVEN_UP or self.journal.is_settled(missing[number]) for number in numbers):
            self.findings.failures.add(f"journal segments {first} to {last} are missing")
            return False
        missing.update(dict.fromkeys(numbers, GIVEN_UP))
        self.findings.damage(f"journal segments {first} to {last} are missing")
        return True

    def _keep(self, segment: Segment, replay: Replay) -> None:
        if replay.unreadable:
            self.findings.damage(f"journal segment {segment.last}: {replay.unreadable} unreadable lines were skipped")
        if replay.lines > 2 * (len(replay.visits) + len(replay.known)) + 8 or replay.unreadable:
            try:
                self.journal.write_segment(segment, replay.visits, replay.sealed_as, replay.known)
            except OSError as error:
                log.warning("segment %d stays as it is: %s", segment.last, error.strerror)
        self.journal.sync(segment)
        self.tokens[segment] = replay.sealed_as
        self._content[segment] = replay.visits.split(partition_of)
        self.known[segment] = replay.known

    def partitions(self) -> set[int]:
        """Return the partitions that have visits in a segment after the floor."""
        return {partition for content in self._content.values() for partition in content}

    def total_of(self, partitions: Container[int]) -> int:
        """Return how many visits of these partitions there are in the segments that were read."""
        return sum(
            visits.total
            for content in self._content.values()
            for partition, visits in content.items()
            if partition in partitions
        )

    def content_of(self, segment: Segment) -> ByPartition:
        """Return the visits of a sealed segment; an included segment is read from its file at the first call."""
        if segment not in self._content:
            self._content[segment] = self.journal.read(segment).visits.split(partition_of)
        return self._content[segment]
