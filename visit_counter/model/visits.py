"""What a visit says, and visits added up. Everything else passes the two on as they are.

To let a visit say more, change this module, and the form of a journal line in `journal.records`. A flush,
a compaction, a repair and the tables of pending visits only add, merge, split and compare tallies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

# What one line of the journal says: the page, and how many visits of it. A bare tuple, since a process makes or reads
# some hundred thousand of them a second.
Visit = tuple[str, int]


def repeated(visit: Visit, times: int) -> Visit:
    """Return what so many lines say that all say the same."""
    page, number = visit
    return page, number * times


class Tally(dict[str, int]):
    """Visits added up: of a segment, of a batch, of a whole store. As a mapping it gives the visits of each page.

    `total` is the number of all visits. Only the methods of this class change a tally, so that the total stays true.
    """

    __slots__ = ("total",)

    def __init__(self, visits: Mapping[str, int] | Iterable[Visit] = ()) -> None:
        super().__init__(visits)
        self.total = sum(self.values())

    def add(self, visits: Iterable[Visit]) -> list[int]:
        """Add visits in their order; return for each of them how many its page has with it."""
        counts = []
        total = 0
        get = self.get
        for page, number in visits:
            count = self[page] = get(page, 0) + number
            total += number
            counts.append(count)
        self.total += total
        return counts

    def merge(self, other: Tally) -> None:
        """Add the visits of another tally."""
        if self:
            get = self.get
            for page, number in other.items():
                self[page] = get(page, 0) + number
        else:
            self.update(other)
        self.total += other.total

    def split(self, part_of: Callable[[str], int]) -> dict[int, Tally]:
        """Return the parts: a function gives the number of the part that a page belongs to."""
        parts: dict[int, dict[str, int]] = {}
        for page, number in self.items():
            parts.setdefault(part_of(page), {})[page] = number
        return {part: Tally(visits) for part, visits in parts.items()}

    def increments(self) -> Iterable[tuple[str, int]]:
        """Return what a store adds up: the field of a partition, which is the page, and the number to add to it."""
        return self.items()

    def minus(self, other: Mapping[str, int]) -> Tally:
        """Return the visits that another tally lacks."""
        get = other.get
        return Tally({page: number - get(page, 0) for page, number in self.items() if number > get(page, 0)})

    def or_more(self, other: Mapping[str, int]) -> Tally:
        """Return the larger of both for each page: each tally holds a beginning of the same lines."""
        return Tally({page: max(self.get(page, 0), other.get(page, 0)) for page in self.keys() | other.keys()})


def together(tallies: Iterable[Tally]) -> Tally:
    """Return the visits of several tallies added up."""
    whole = Tally()
    for tally in tallies:
        whole.merge(tally)
    return whole
