"""What sealed segments say of stored counts: a process that starts while a shard is down knows them from there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from visit_counter.journal.records import Known

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from visit_counter.journal.records import Replay
    from visit_counter.journal.segments import Segment

Found = tuple["Segment", "Replay"]


def recalled(found: Sequence[Found], to: int) -> Iterator[tuple[str, Known]]:
    """Give each page and what its lines say, oldest first, with this host's visits up to segment `to` added.

    `found`: the segments there are, oldest first. A line is left out where some of these visits are not there any more.
    """
    retained = [(segment, replay.visits) for segment, replay in found if segment.last <= to]
    first = _first_of_unbroken([segment for segment, _ in found if segment.first <= to], to)
    for _, replay in found:
        for (page, losses, number), stored in replay.known.items():
            if number >= to:
                yield page, Known(losses, number, stored)
            elif number >= first - 1:
                later = [(segment, visits) for segment, visits in retained if segment.last > number]
                # A merged file lacks visits that their partition included when it was written.
                if all(segment.first == segment.last for segment, _ in later):
                    yield page, Known(losses, to, stored + sum(visits.get(page, 0) for _, visits in later))


def _first_of_unbroken(segments: Sequence[Segment], to: int) -> int:
    """Return the number from which on every segment up to `to` is there; the one after `to` for none."""
    first = to + 1
    for segment in reversed(segments):
        if min(segment.last, to) != first - 1:
            break
        first = segment.first
    return first
