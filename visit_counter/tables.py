"""The tables of pending visits: a table per segment that some partition may not include yet. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Visits = dict[str, int]


class Table:
    """The visits per page of one segment (or of several merged ones)."""

    __slots__ = ("first", "last", "total", "visits")

    def __init__(self, first: int, last: int, visits: Visits) -> None:
        self.first, self.last, self.visits = first, last, visits
        self.total = sum(visits.values())

    def count(self, run: Iterable[tuple[str, int]]) -> list[int]:
        """Add visits in their order; return what each page has with it."""
        mine = self.visits
        counts = []
        total = 0
        for page, number in run:
            count = mine[page] = mine.get(page, 0) + number
            total += number
            counts.append(count)
        self.total += total
        return counts


def total_of(tables: Sequence[Table]) -> Visits:
    """Return the visits per page of several tables."""
    whole = Table(0, 0, {})
    for table in tables:
        whole.count(table.visits.items())
    return whole.visits


class Tables:
    """The table of the current segment, and those of sealed ones, oldest first."""

    def __init__(self) -> None:
        self.current = Table(0, 0, {})
        self.sealed: list[Table] = []
        self.version = 0  # changes whenever visits may have left the tables
        self._sealed_pages = 0

    @property
    def pages(self) -> int:
        """How many pages all tables hold; a page in several is counted in each."""
        return len(self.current.visits) + self._sealed_pages

    def pending(self, page: str, after: int) -> int:
        """Return the visits of a page in the segments after number `after`."""
        count = self.current.visits.get(page, 0)
        return count + self.pending_sealed(page, after) if self.sealed else count

    def pending_sealed(self, page: str, after: int) -> int:
        """Return the same, but for the current segment."""
        count = 0
        for table in self.sealed:
            if table.last > after:
                count += table.visits.get(page, 0)
        return count

    def totals(self, after: int) -> tuple[int, int]:
        """Return (visits, pages) of the segments after number `after`."""
        tables = [*(table for table in self.sealed if table.last > after), self.current]
        return sum(table.total for table in tables), sum(len(table.visits) for table in tables)

    def walk(self, after: int) -> Iterator[tuple[str, int, int]]:
        """Give (page, visits, segment) of all segments after number `after`."""
        for table in [*self.sealed, self.current]:
            if table.last > after:
                for page, visits in table.visits.items():
                    yield page, visits, table.last

    def seal(self) -> None:
        """Go on with an empty table: the current segment is sealed."""
        self.sealed.append(self.current)
        self.start(self.current.last + 1)
        self._count()

    def start(self, number: int) -> None:
        """Begin the table of segment `number`."""
        self.current = Table(number, number, {})

    def reset(self, sealed: list[Table]) -> None:
        """Take these as the sealed ones."""
        self.sealed = sealed
        self.version += 1
        self._count()

    def drop(self, done: Sequence[Table]) -> None:
        """Forget tables that every partition includes."""
        self.reset([table for table in self.sealed if table not in done])

    def replace(self, parts: Sequence[Table], whole: Table) -> None:
        """Put one table in the place of those next to each other that it sums up, if they are still there."""
        if parts and parts[0] in self.sealed:
            at = self.sealed.index(parts[0])
            self.sealed[at : at + len(parts)] = [whole]
            self.version += 1
            self._count()

    def _count(self) -> None:
        self._sealed_pages = sum(len(table.visits) for table in self.sealed)
