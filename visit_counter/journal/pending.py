"""The tables of pending visits: a table per segment that some partition may not include yet. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from visit_counter.journal.records import FLUSHED, PROBE, Known
from visit_counter.model.visits import Tally

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from visit_counter.journal.records import KnownCounts, Replay
    from visit_counter.journal.segments import SealPlace, Segment

# How many lines `read` of its segment a table keeps at most: many of them take more memory than the visits.
_KNOWN_PAGES = 5000
# Events that do not change the content of the segment in which they stand.
_HARMLESS = frozenset((FLUSHED, PROBE))
# How long a table is kept after it was dropped, or merged into another one. Other processes read the state once a
# second, and a stored count that they report may be as old as the state they know. The other seconds are for a process
# that waits for a slow disk meanwhile.
_KEPT_SECONDS = 10.0


class Table:
    """The visits of one segment, or of several merged ones; `token` is the token of its seal.

    `reported`: the pages with a line `read` in the segment, as far as this process has read it. `known`: the counts in
    these lines; None if they are too many, or if the file holds anything but whole lines of visits and reads.
    `seal_at`: the place in the file where this process read the seal; None if the table was made in another way.
    """

    __slots__ = ("first", "known", "last", "reported", "seal_at", "token", "visits")

    def __init__(self, first: int, last: int, visits: Tally, token: str = "") -> None:
        self.first, self.last, self.visits, self.token = first, last, visits, token
        self.reported: dict[str, None] = {}  # not a set: every full garbage collection visits a set's members
        self.known: KnownCounts | None = {}
        self.seal_at: SealPlace | None = None

    def note(self, replay: Replay) -> None:
        """Add the sum of a piece of the segment's file."""
        self.visits.merge(replay.visits)
        if replay.unreadable or replay.fenced or any(event.kind not in _HARMLESS for event in replay.events):
            self.known = None
        self.keep(replay.known.items())

    def keep(self, reads: Iterable[tuple[tuple[str, int, int], int]]) -> None:
        """Add the counts in lines `read` of the segment, in the order of the file."""
        if self.known is not None:
            for at, stored in reads:
                self.known[at] = max(stored, self.known.get(at, 0))
            if len(self.known) > _KNOWN_PAGES:
                self.known = None


class Tables:
    """The table of the current segment, and the tables of sealed segments, oldest first."""

    def __init__(self) -> None:
        self.current = Table(0, 0, Tally())
        self.sealed: list[Table] = []
        self.version = 0  # changes whenever visits may have left the tables
        self._dropped: list[Table] = []  # oldest first: see `drop`
        self._dropped_at: list[float] = []
        self._parts: dict[Table, Sequence[Table]] = {}  # for each merged table, the tables that it replaced
        self._parts_at: dict[Table, float] = {}
        self._now = 0.0  # when `drop` was called last
        self._complete_from = 0  # every segment after this number is in a table here
        self._sealed_pages = 0

    @property
    def pages(self) -> int:
        """How many pages all tables hold; a page in several tables is counted once for each."""
        return len(self.current.visits) + self._sealed_pages

    @property
    def are_whole(self) -> bool:
        """Whether these tables say all that their files say, so that the flush need not read the files."""
        sealed = all(table.known is not None and table.seal_at is not None for table in self.sealed)
        return sealed and self.current.known is not None

    def pending(self, page: str, after: int) -> int:
        """Return the visits of a page in the segments after number `after`."""
        count = self.current.visits.get(page, 0)
        return count + self.pending_sealed(page, after) if self.sealed else count

    def pending_sealed(self, page: str, after: int) -> int:
        """Return the same without the current segment."""
        count = 0
        for table in self.sealed:
            if table.last > after:
                count += table.visits.get(page, 0)
        return count

    def totals(self, after: int) -> tuple[int, int]:
        """Return (visits, pages) of the segments after number `after`."""
        tables = [*(table for table in self.sealed if table.last > after), self.current]
        return sum(table.visits.total for table in tables), sum(len(table.visits) for table in tables)

    def walk(self, after: int) -> Iterator[tuple[str, int, int]]:
        """Give (page, visits, segment) of all segments after number `after`."""
        for table in [*self.sealed, self.current]:
            if table.last > after:
                for page, visits in table.visits.items():
                    yield page, visits, table.last

    def raised(self, page: str, known: Known, to: int, included: int) -> Known | None:
        """Return `known` with this host's visits up to segment `to` added; None if the tables no longer have these.

        `included` is the last segment that the page's partition includes. A merged table may lack visits of segments up
        to that one.
        """
        at = max(known.segment, to)
        if any(t.first <= at < t.last and page in t.visits for t in self.sealed):
            return None  # The count includes a part of a merged table, which does not say what the other part holds.
        if known.segment >= to:
            return known
        if known.segment < self._complete_from:
            return None
        stored = known.stored
        for table in (*self._dropped, *self.sealed):
            visits = self._between(table, page, known.segment, to, included)
            if visits is None:
                return None
            stored += visits
        return Known(known.losses, to, stored)

    def _between(self, table: Table, page: str, after: int, to: int, included: int) -> int | None:
        """Return the visits of a page in a table, counting only the segments from `after + 1` to `to`.

        Return None if the table does not say that: a merge leaves out visits that the partition includes, and a count
        that includes the segments up to `after` may lack some of these. The parts of a merged table have all visits;
        they are kept for a while.
        """
        if table.last <= after:
            return 0
        parts = self._parts.get(table)
        if parts is not None:
            visits = [self._between(part, page, after, to, included) for part in parts]
            return None if None in visits else sum(number for number in visits if number)
        is_merged = table.first < table.last
        if is_merged and (after < included >= table.first or (after >= table.first and page in table.visits)):
            return None
        return table.visits.get(page, 0) if table.last <= to else 0

    def token_of(self, segment: int) -> str | None:
        """Return the token of a segment that has a table here, "" if it has no token, None if it has no table."""
        if segment >= self.current.last:
            return ""
        for table in self.sealed:
            if table.first <= segment <= table.last:
                return table.token if segment == table.last else ""
        return None

    def of(self, segment: Segment) -> Table | None:
        """Return the table of a sealed segment, or None."""
        return next((table for table in self.sealed if (table.first, table.last) == segment.range), None)

    def seal(self, token: str = "") -> None:
        """Move the current table to the sealed ones, and begin the table of the next segment."""
        self.current.token = token
        self.sealed.append(self.current)
        self.start(self.current.last + 1)
        self._count()

    def start(self, number: int) -> None:
        """Begin the table of segment `number`."""
        self.current = Table(number, number, Tally())

    def reset(self, sealed: list[Table], retained: Sequence[Table] = (), *, after: int, now: float = 0.0) -> None:
        """Take `sealed` as the sealed tables: they are all segments after number `after`.

        `retained` are the segments before these whose files are still there, next to each other. They are kept for as
        long as dropped tables are, see `drop`.
        """
        self.sealed = sealed
        self._dropped, self._dropped_at = list(retained), [now] * len(retained)
        self._complete_from = retained[0].first - 1 if retained else after
        self._parts, self._parts_at = {}, {}
        self.version += 1
        self._count()

    def insert(self, table: Table) -> None:
        """Add the table of a sealed segment, unless another table has a part of its segments."""
        if all(other.last < table.first or table.last < other.first for other in (*self.sealed, self.current)):
            self.sealed = sorted([*self.sealed, table], key=lambda one: one.last)
            self.version += 1
            self._count()

    def remove(self, numbers: tuple[int, int]) -> None:
        """Forget the table of the segments from the first to the last number: another table has its visits."""
        self.sealed = [table for table in self.sealed if (table.first, table.last) != numbers]
        self.version += 1
        self._count()

    def drop(self, done: Sequence[Table], now: float) -> None:
        """Stop counting these tables as pending: every partition includes their segments.

        Another process may still report a count that it read before a partition included them. `raised` adds their
        visits to such a count, so they are kept for a few seconds more. This is called at least once a second, also
        without a table; `now` is in seconds.
        """
        self._now = now
        while self._dropped_at and now - self._dropped_at[0] > _KEPT_SECONDS:
            del self._dropped_at[0]
            self._complete_from = self._dropped.pop(0).last
        for whole in [whole for whole, at in self._parts_at.items() if now - at > _KEPT_SECONDS]:
            del self._parts[whole], self._parts_at[whole]
        if done:
            self.sealed = [table for table in self.sealed if table not in done]
            self._dropped += done
            self._dropped_at += [now] * len(done)
            self.version += 1
            self._count()

    def replace(self, parts: Sequence[Table], whole: Table) -> None:
        """Replace adjacent tables with the one table that sums them up, if they are still here.

        A merge leaves out visits that their partition includes, but another process may still report a count that
        lacks them. So the parts are kept for as long as dropped tables are.
        """
        if parts and parts[0] in self.sealed:
            at = self.sealed.index(parts[0])
            whole.token = parts[-1].token
            self.sealed[at : at + len(parts)] = [whole]
            if len(parts) > 1:
                self._parts[whole], self._parts_at[whole] = parts, self._now
            self.version += 1
            self._count()

    def _count(self) -> None:
        self._sealed_pages = sum(len(table.visits) for table in self.sealed)
