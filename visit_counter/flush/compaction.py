"""Merging: while a shard is down, the flush merges the segments that wait for it into one file with a line per page.

So the journal grows with the number of distinct pages that wait, not with the number of their visits.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from visit_counter.journal.records import MERGED
from visit_counter.journal.segments import Segment
from visit_counter.model.visits import Tally
from visit_counter.shards.contract import NO_WATERMARK, segment_of

if TYPE_CHECKING:
    from visit_counter.flush.round import Round
    from visit_counter.journal.records import KnownCounts

log = logging.getLogger(__name__)

# Fewer segments than this are not worth a merge.
COMPACT_FROM = 8


def compact_waiting(flushed: Round, keep: int) -> None:
    """Merge the segments that still wait after a flush, except the newest `keep` segments, wherever that is safe.

    A merged file is sent whole or not at all. So a merge ends at each number that is, or may be, the watermark of a
    partition with waiting visits: such a partition needs only the visits behind that number. Visits that a partition
    includes already are left out of the merged file.
    """
    state = flushed.state
    waiting = [segment for segment in flushed.sealed.tokens if segment.last > state.floor]
    waiting = waiting[: max(0, len(waiting) - keep)]
    boundaries = {number for numbers in state.attempted.values() for number in numbers}
    for segment in waiting:
        for partition in flushed.sealed.content_of(segment):
            confirmed = _confirmed(flushed, partition)
            if confirmed < segment.last:
                boundaries.add(confirmed)
    group: list[Segment] = []
    for segment in waiting:
        if _may_be_needed(flushed, segment):
            # A shard may come back with an older watermark, and would then need visits that a merge leaves out.
            if len(group) >= COMPACT_FROM:
                _compact(flushed, group)
            group = []
            continue
        group.append(segment)
        if segment.last in boundaries or segment is waiting[-1]:
            if len(group) >= COMPACT_FROM:
                _compact(flushed, group)
            group = []


def _may_be_needed(flushed: Round, segment: Segment) -> bool:
    return any(
        reached < segment.last and segment.first <= _confirmed(flushed, partition)
        for partition, (_, reached) in flushed.state.unpersisted.items()
    )


def _confirmed(flushed: Round, partition: int) -> int:
    return segment_of(flushed.state.confirmed.get(partition, NO_WATERMARK))


def _compact(flushed: Round, group: list[Segment]) -> None:
    whole = Segment(group[0].first, group[-1].last)
    visits = Tally()
    for segment in group:
        for partition, pages in flushed.sealed.content_of(segment).items():
            if _confirmed(flushed, partition) < segment.last:
                visits.merge(pages)
            else:
                flushed.note_forgotten(segment, [partition])
    known: KnownCounts = {}
    for segment in group:
        for at, stored in flushed.sealed.known[segment].items():
            if at[0] in visits:
                known[at] = max(stored, known.get(at, 0))
    flushed.state.save(flushed.journal.state_path)
    flushed.journal.write_segment(whole, visits, flushed.sealed.tokens[group[-1]], known)
    flushed.announce(MERGED, f"{whole.first}-{whole.last}")
    for segment in group:
        if segment != whole:
            flushed.journal.forget(segment)
    log.info("merged the waiting segments %d to %d into one file of %d pages", whole.first, whole.last, len(visits))
