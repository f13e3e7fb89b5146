"""Segments whose files were gone when this process came to read them; other processes may know their visits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from visit_counter.journal.checkpoint import GIVEN_UP

if TYPE_CHECKING:
    from visit_counter.journal.buffer import WriteBuffer


class Absent:
    """The segments that this process must follow but cannot open, since somebody has removed their files.

    Other processes may still have these files open and append visits to them, until their next inspection (one each
    second) finds the files gone and writes them anew. Before that, this process would answer with too few visits, and
    the others would not see the visits that it accepts. So it refuses visits and reads until the segments exist again,
    or until every process has had the time to write them anew.

    An instance is true while it holds any segment. The methods expect the buffer's lock to be held.
    """

    def __init__(self, buffer: WriteBuffer) -> None:
        self._buffer = buffer
        self._since: dict[int, float] = {}  # when each segment number was found absent, by the journal's clock

    def __bool__(self) -> bool:
        return bool(self._since)

    def clear(self) -> None:
        """Forget all segments: this process reads the whole journal anew."""
        self._since.clear()

    def note(self, first: int, last: int) -> None:
        """Note that the segments `first` to `last` have no files, and refuse visits."""
        buffer = self._buffer
        missing = buffer.state.missing
        since = buffer.journal.now()
        self._since |= {n: since for n in range(first, last + 1) if missing.get(n) != GIVEN_UP}
        if self._since:
            buffer.halt(f"journal segment {last} is missing, and other processes may know it")

    def wait_longer(self) -> None:
        """Start the waiting time anew: a process that knows a segment cannot write it while a flush is running."""
        self._since = dict.fromkeys(self._since, self._buffer.journal.now())

    def look_again(self) -> None:
        """Forget the segments that this process has read by now, and those that no process has written anew in time."""
        if not self._since:
            return
        buffer = self._buffer
        known = {number for table in buffer.tables.sealed for number in range(table.first, table.last + 1)}
        self._since = {
            number: since
            for number, since in self._since.items()
            if number > buffer.included_to and number not in known and not buffer.journal.is_settled(since)
        }
