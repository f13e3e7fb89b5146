"""Keeps a process's tables in step with the files: it drops tables, merges them, and replaces them.

A table is dropped once every partition includes its segment. When the flush has merged segments into one file, one
table replaces theirs. When a file was mended, the table is made again from the new file.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from visit_counter.journal.directory import Segment
from visit_counter.journal.pending import Table
from visit_counter.journal.records import AGAIN, FLUSHED, MERGED, REREAD, WHOLE, Record
from visit_counter.model.visits import together

if TYPE_CHECKING:
    from visit_counter.journal.following import Follower
    from visit_counter.model.visits import Tally

Rebase = Callable[[str, int, int], None]
# How many pages one call of `tidy` handles under the lock: a few hundred microseconds.
_TIDY_PAGES = 256


class Upkeep:
    """Keeps the tables of one process as the events in the journal and the flush's state demand."""

    def __init__(self, buffer: Follower) -> None:
        self._buffer = buffer
        self._changed = False  # an event reported a new state, which `tidy` is to read
        self.merged: list[Segment] = []  # files that hold several segments now, for `tidy`

    def note(self, event: Record) -> None:
        """Act on an event of the journal now, or leave it to the next `tidy`. The lock is held."""
        if event.kind in (FLUSHED, MERGED):
            self._changed = True
        if event.kind in (MERGED, REREAD, AGAIN):
            self._note_segment(event)

    def _note_segment(self, event: Record) -> None:
        """Act on the event that a segment was merged or written anew, or that visits it lacked were appended again."""
        numbers, _, what = event.argument.partition(b" ")
        first, _, last = numbers.partition(b"-")
        segment = Segment(int(first), int(last))
        if event.kind == MERGED:
            self.merged.append(segment)
        elif event.kind == REREAD:
            if segment not in self._buffer.mending.doubtful:
                self.reread(segment)
        else:
            # A process has appended the visits that the file lacked to the current segment, where they count now. So
            # they no longer count in the table of the older segment, where this process may still have them.
            mine = self._buffer.mending.doubtful.pop(segment, None)
            if what == WHOLE:
                self._buffer.tables.remove(segment.range)
            elif mine is not None and mine.held is not None:
                self._put(segment, mine.held, mine.token)
            else:
                self.reread(segment)

    def reread(self, segment: Segment) -> None:
        """Replace a segment's table with the content of its file, if the file exists. Takes the lock itself."""
        with suppress(FileNotFoundError):
            replay = self._buffer.journal.read(segment)
            with self._buffer.lock:
                self._put(segment, replay.visits, replay.sealed_as)

    def _put(self, segment: Segment, visits: Tally, token: str) -> None:
        """Replace or add the table of a segment. The lock is held."""
        whole = Table(*segment.range, visits, token)
        for table in self._buffer.tables.sealed:
            if (table.first, table.last) == segment.range:
                self._buffer.tables.replace([table], whole)
                whole.token = token
                return
        if segment.last > self._buffer.included_to:
            self._buffer.tables.insert(whole)  # it was missing when this process began

    def tidy(self, rebase: Rebase) -> None:
        """Read a new state, and drop or replace tables as it demands. Takes the lock itself; see `WriteBuffer.tick`."""
        with self._buffer.lock:
            # The state's file is checked even if no event reported a new state: a flush that died, or that met a full
            # disk, has written a state but no event.
            if self._changed or self._buffer.has_new_state():
                self._changed = False
                self._buffer.reload_state()
            merged, self.merged = self.merged, []
            done = [table for table in self._buffer.tables.sealed if table.last <= self._buffer.included_to]
        for table in done:
            self._rebase(table, rebase)
        with self._buffer.lock:
            self._buffer.tables.drop(done, self._buffer.journal.now())
        for segment in merged:
            self._replace_parts(segment, rebase)

    def _rebase(self, table: Table, rebase: Rebase) -> None:
        """Call `rebase` for all pages of a table; the lock is held for a few pages at a time."""
        pages = list(table.visits.items())
        for start in range(0, len(pages), _TIDY_PAGES):
            with self._buffer.lock:
                for page, visits in pages[start : start + _TIDY_PAGES]:
                    rebase(page, visits, table.last)

    def _replace_parts(self, whole: Segment, rebase: Rebase) -> None:
        """Put the table of a merged file in the place of the tables of its parts."""
        try:
            merged = self._buffer.journal.read(whole)
        except FileNotFoundError:
            # The flush has merged it once more, or deleted it, and another event reports that. Until then the tables of
            # the parts are right, too.
            return
        kept = merged.visits
        with self._buffer.lock:
            sealed = self._buffer.tables.sealed
            parts = [table for table in sealed if whole.first <= table.first and table.last <= whole.last]
        # A merge leaves out the visits that their partition included when the merged file was written. These are the
        # visits that the parts have and the merged file lacks, and they are the oldest ones of their page. The
        # partition's present watermark does not give their number: it may include more by now.
        left_out = dict(together(table.visits for table in parts).minus(kept))

        def rebase_left_out(page: str, visits: int, last: int) -> None:
            if left_out.get(page, 0) > 0:
                left_out[page] -= visits
                self._rebase_to(page, last, rebase)

        for table in parts:
            self._rebase(table, rebase_left_out)
        with self._buffer.lock:
            self._buffer.tables.replace(parts, Table(whole.first, whole.last, kept, merged.sealed_as))

    def _rebase_to(self, page: str, last: int, rebase: Rebase) -> None:
        """Rebase one page from all tables up to segment `last`, which its partition includes; others may not yet."""
        for table in self._buffer.tables.sealed:
            if table.last <= last and page in table.visits:
                rebase(page, table.visits[page], table.last)
