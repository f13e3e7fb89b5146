"""The stored counts that sealed segments report: a process that starts while a shard is down takes them from there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from visit_counter.journal.records import Known

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from visit_counter.journal.records import Replay
    from visit_counter.journal.segments import Segment

Found = tuple["Segment", "Replay"]


def recalled(found: Sequence[Found], to: int) -> Iterator[tuple[str, Known]]:
    """Give (page, count) for each line `read`, oldest first, with this host's visits up to segment `to` added.

    `found`: the segments that still have a file, oldest first. A line is left out if some of the visits to add are in
    no file any more.
    """
    retained = [(segment, replay.visits) for segment, replay in found if segment.last <= to]
    first = _first_of_unbroken([segment for segment, _ in found if segment.first <= to], to)
    for _, replay in found:
        for (page, losses, number), stored in replay.known.items():
            if number >= to:
                yield page, Known(losses, number, stored)
            elif number >= first - 1:
                later = [(segment, visits) for segment, visits in retained if segment.last > number]
                # A merged file lacks the visits that their partition included when the file was written.
                if all(segment.first == segment.last for segment, _ in later):
                    yield page, Known(losses, to, stored + sum(visits.get(page, 0) for _, visits in later))


def unbroken(found: Sequence[Found], to: int) -> list[Found]:
    """Return the segments up to number `to` that have a file, from the lowest one behind which none lacks its file."""
    first = _first_of_unbroken([segment for segment, _ in found if segment.last <= to], to)
    return [(segment, replay) for segment, replay in found if first <= segment.first and segment.last <= to]


def _first_of_unbroken(segments: Sequence[Segment], to: int) -> int:
    """Return the lowest number from which every segment up to `to` has a file; `to + 1` if segment `to` has none."""
    first = to + 1
    for segment in reversed(segments):
        if min(segment.last, to) != first - 1:
            break
        first = segment.first
    return first
