"""Reports in each segment the stored counts of its pages, for a process that starts while a shard is down."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from visit_counter.journal.buffer import WriteBuffer
    from visit_counter.journal.pending import Table
    from visit_counter.journal.records import Known

# How many pages one call of `tell` handles under the lock: some hundred microseconds.
_TELL_PAGES = 256


class Telling:
    """Reports the known counts of the pages of the current segment. `known_of`: see `WriteBuffer.known_of`."""

    def __init__(self, buffer: WriteBuffer, known_of: Callable[[Iterable[str]], list[tuple[str, Known]]]) -> None:
        self._buffer, self._known_of = buffer, known_of
        self._place: tuple[Table, int] | None = None  # a table, and how many of its pages were handled

    def start_anew(self) -> None:
        """Begin anew with the current table: the tables before it may be gone. The buffer's lock is held."""
        self._place = None

    def tell(self) -> None:
        """Report the known counts of pages that were visited since the last call, except those that were reported.

        Takes the lock itself.
        """
        more = True
        while more:
            with self._buffer.lock:
                self._buffer.catch_up()
                more = self._tell_some()

    def _tell_some(self) -> bool:
        """Report the counts of some more pages; return whether there may be others."""
        tables = self._buffer.tables
        table, seen = self._place or (tables.current, 0)
        pages = list(islice(table.visits, seen, seen + _TELL_PAGES))
        reported = table.reported | tables.current.reported if table is not tables.current else table.reported
        reads = self._known_of(page for page in pages if page not in reported)
        if reads and not self._buffer.report(reads):
            return False
        self._place = table, seen + len(pages)
        if len(pages) == _TELL_PAGES:
            return True
        later = next((each for each in (*tables.sealed, tables.current) if each.first > table.last), None)
        if later is not None:
            self._place = later, 0
        return later is not None
