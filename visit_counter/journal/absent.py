"""Segments that one process does not know and others may: their files were gone when it came to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from visit_counter.journal.checkpoint import GIVEN_UP

if TYPE_CHECKING:
    from visit_counter.journal.buffer import WriteBuffer


class Absent:
    """The segments that a process would have to follow and cannot, since somebody has removed them.

    Other processes may have them open, acknowledge visits into them, and write them anew when they look. Until then
    this process would answer less than was acknowledged, and what it accepted would not be seen by the others. So
    it refuses visits and reads until the segments are there again, or until every process has had the time to look.

    It is true while there are any. The buffer's lock is held.
    """

    def __init__(self, buffer: WriteBuffer) -> None:
        self._buffer = buffer
        self._since: dict[int, float] = {}  # since when each segment number is absent, by the journal's clock

    def __bool__(self) -> bool:
        return bool(self._since)

    def clear(self) -> None:
        """Forget all: the journal is read anew."""
        self._since.clear()

    def note(self, first: int, last: int) -> None:
        """Note that the segments from the first to the last number are not there, and refuse visits."""
        buffer = self._buffer
        missing = buffer.state.missing
        since = buffer.journal.now()
        self._since |= {n: since for n in range(first, last + 1) if missing.get(n) != GIVEN_UP}
        if self._since:
            buffer.halt(f"journal segment {last} is missing, and other processes may know it")

    def wait_longer(self) -> None:
        """Begin the time anew that every process has: one that knows a segment cannot write it during a flush."""
        self._since = dict.fromkeys(self._since, self._buffer.journal.now())

    def look_again(self) -> None:
        """Forget the segments that are known by now, or that nobody has written anew in time."""
        if not self._since:
            return
        buffer = self._buffer
        known = {number for table in buffer.tables.sealed for number in range(table.first, table.last + 1)}
        self._since = {
            number: since
            for number, since in self._since.items()
            if number > buffer.included_to and number not in known and not buffer.journal.is_settled(since)
        }
