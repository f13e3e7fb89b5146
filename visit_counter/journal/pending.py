"""The tables of pending visits: a table per segment that some partition may not include yet. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from visit_counter.journal.records import FLUSHED, PROBE, Known
from visit_counter.model.visits import Tally

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from visit_counter.journal.records import KnownCounts, Replay
    from visit_counter.journal.segments import SealPlace, Segment

# A table keeps what its segment says of stored counts up to this number: many such lines take more memory than visits.
_KNOWN_PAGES = 5000
# Events that say nothing of the segment that they are in.
_HARMLESS = frozenset((FLUSHED, PROBE))
# How long a table is kept that was dropped, or merged into another one. Other processes follow the state once a second,
# and a stored count that they tell of may be as old as the state that they know; the rest is for a busy machine.
_KEPT_SECONDS = 3.0


class Table:
    """The visits of one segment (or of several merged ones); `token` is that of its seal.

    `reported`: the pages of which the segment says what was stored, as far as this process has followed it. `known`:
    what it says of them, or None if that is too much to keep, or if anything was in the file but whole lines of visits
    and reads. `seal_at`: where the seal was met by following the file; None if the table was made in another way.
    """

    __slots__ = ("first", "known", "last", "reported", "seal_at", "token", "visits")

    def __init__(self, first: int, last: int, visits: Tally, token: str = "") -> None:
        self.first, self.last, self.visits, self.token = first, last, visits, token
        self.reported: dict[str, None] = {}  # not a set, whose members every full garbage collection visits
        self.known: KnownCounts | None = {}
        self.seal_at: SealPlace | None = None

    def note(self, replay: Replay) -> None:
        """Take in what a piece of the segment's file adds up to."""
        self.visits.merge(replay.visits)
        if replay.unreadable or replay.fenced or any(event.kind not in _HARMLESS for event in replay.events):
            self.known = None
        self.keep(replay.known.items())

    def keep(self, reads: Iterable[tuple[tuple[str, int, int], int]]) -> None:
        """Take in what lines of the segment say of stored counts, in their order."""
        if self.known is not None:
            for at, stored in reads:
                self.known[at] = max(stored, self.known.get(at, 0))
            if len(self.known) > _KNOWN_PAGES:
                self.known = None


class Tables:
    """The table of the current segment, and those of sealed ones, oldest first."""

    def __init__(self) -> None:
        self.current = Table(0, 0, Tally())
        self.sealed: list[Table] = []
        self.version = 0  # changes whenever visits may have left the tables
        self._dropped: list[Table] = []  # oldest first: see `drop`
        self._dropped_at: list[float] = []
        self._parts: dict[Table, Sequence[Table]] = {}  # of merged tables: what they were put in the place of
        self._parts_at: dict[Table, float] = {}
        self._now = 0.0  # when `drop` was called last
        self._complete_from = 0  # every segment after this number is in a table here
        self._sealed_pages = 0

    @property
    def pages(self) -> int:
        """How many pages all tables hold; a page in several is counted in each."""
        return len(self.current.visits) + self._sealed_pages

    @property
    def are_whole(self) -> bool:
        """Whether the flush may take what waits from these tables, as far as they can tell: see `Table.known`."""
        sealed = all(table.known is not None and table.seal_at is not None for table in self.sealed)
        return sealed and self.current.known is not None

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
        return sum(table.visits.total for table in tables), sum(len(table.visits) for table in tables)

    def walk(self, after: int) -> Iterator[tuple[str, int, int]]:
        """Give (page, visits, segment) of all segments after number `after`."""
        for table in [*self.sealed, self.current]:
            if table.last > after:
                for page, visits in table.visits.items():
                    yield page, visits, table.last

    def raised(self, page: str, known: Known, to: int, included: int) -> Known | None:
        """Return what is known with this host's visits up to segment `to` added; None if they are no longer here.

        `included` is the last segment that the page's partition includes. A merged table may lack visits up to it.
        """
        at = max(known.segment, to)
        if any(t.first <= at < t.last and page in t.visits for t in self.sealed):
            return None  # The count includes a part of a merged table, and the other part cannot be told from it.
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
        """Return the visits of a page in those of a table's segments that are after `after` and not after `to`.

        None if they cannot be told: a merge may have left out visits that the partition includes and a count of `after`
        lacks. For a while after a merge its parts are kept, which have all visits.
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
        """Return the token of a segment that some partition may not include yet; "" if it has none, None if unknown."""
        if segment >= self.current.last:
            return ""
        for table in self.sealed:
            if table.first <= segment <= table.last:
                return table.token if segment == table.last else ""
        return None

    def of(self, segment: Segment) -> Table | None:
        """Return the table of a sealed segment, if there is one."""
        return next((table for table in self.sealed if (table.first, table.last) == segment.range), None)

    def seal(self, token: str = "") -> None:
        """Go on with an empty table: the current segment is sealed."""
        self.current.token = token
        self.sealed.append(self.current)
        self.start(self.current.last + 1)
        self._count()

    def start(self, number: int) -> None:
        """Begin the table of segment `number`."""
        self.current = Table(number, number, Tally())

    def reset(self, sealed: list[Table], after: int) -> None:
        """Take these as the sealed ones; they are all segments after number `after`."""
        self.sealed = sealed
        self._dropped, self._dropped_at, self._complete_from = [], [], after
        self._parts, self._parts_at = {}, {}
        self.version += 1
        self._count()

    def insert(self, table: Table) -> None:
        """Take up a sealed segment that was not known, unless a table has a part of it."""
        if all(other.last < table.first or table.last < other.first for other in (*self.sealed, self.current)):
            self.sealed = sorted([*self.sealed, table], key=lambda one: one.last)
            self.version += 1
            self._count()

    def remove(self, numbers: tuple[int, int]) -> None:
        """Forget the table of the segments from the first to the last number: its visits are in another one."""
        self.sealed = [table for table in self.sealed if (table.first, table.last) != numbers]
        self.version += 1
        self._count()

    def drop(self, done: Sequence[Table], now: float) -> None:
        """Take these tables out of those that count: every partition includes their segments.

        What another process has read of a page may not include them yet. So their visits are kept for a few seconds
        more, to be added to such a count. Called once a second or more often, also without a table; `now` in seconds.
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
        """Put one table in the place of the tables, next to each other, that it sums up, if they are still there.

        A merge leaves out what its partition includes, and another process may still tell of a count that lacks it. So
        the parts are kept for as long as dropped tables are.
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
