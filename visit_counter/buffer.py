"""The write buffer: one process's view of the journal. It appends visits and knows what is pending.

Every process of a host appends to the same files and folds them, in their order, into tables of its own: one table
of visits per page for each segment that some partition may not include yet. There is no other communication, so
what one worker acknowledged the next one counts as soon as it looks at the end of the file.

All methods expect `lock` to be held by the caller unless they say otherwise: the counter takes it once
around looking at the journal, the cached counts and the tables, and so sees one moment of all three.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable
from itertools import starmap
from typing import TYPE_CHECKING

from visit_counter import steps
from visit_counter.errors import JournalError, JournalFullError, UncertainError
from visit_counter.journal import Journal, Segment
from visit_counter.recall import recalled
from visit_counter.records import MERGED, Folded, Known, read_line, read_visits, visit_line
from visit_counter.state import State
from visit_counter.tables import Table, Tables, Visits, total_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from visit_counter.recall import Found

log = logging.getLogger(__name__)

Rebase = Callable[[str, int, int], None]
# How many pages one call of `tidy` handles under the lock: a few hundred microseconds.
_TIDY_PAGES = 256
_OPEN_TRIES = 100
# The longest line of a visit.
_LINE_BYTES = 300
# After a failed append, the disk has room again when it has this much.
_ROOM_BYTES = 1 << 16
# Reads are told up to this share of what the journal may take: the rest is for visits.
_READS_SHARE = 2
_TELL_TRIES = 5


class WriteBuffer:
    """Appends visits to the journal and folds what all processes appended.

    `fsync` is `always`, `everysec` or `os`; `max_bytes` bounds the journal's files and `max_pages` the
    pages pending in memory: beyond either, `append` refuses with JournalFullError.
    """

    def __init__(
        self, journal: Journal, *, fsync: str = "everysec", max_bytes: int = 1 << 30, max_pages: int = 2_000_000
    ) -> None:
        self.journal = journal
        self.lock = threading.RLock()
        self.writer = ""
        self.state = State()
        # Every partition includes the segments up to this one; their tables are dropped once they are rebased.
        self.included_to = 0
        self.unreadable_lines = 0
        # How often the journal was read from the start. What was known before the last time is void: the tables that
        # it relied on may be gone. `on_load` is called then, and `on_read(page, known)` for what the segments say.
        self.loads = 0
        self.on_load: Callable[[], None] = lambda: None
        self.on_read: Callable[[str, Known], None] = lambda _page, _known: None
        self._always_sync = fsync == "always"
        self._every_second = fsync == "everysec"
        self._max_bytes, self._max_pages = max_bytes, max_pages
        self.tables = Tables()
        self._other_bytes = 0  # what the journal takes besides the current segment
        self._descriptor = -1
        self._offset = 0
        self._dirty = False
        self._failed = ""  # why the last append failed
        self._state_version = (0, 0)
        self._retained: tuple[int, dict[Segment, Visits]] = (-1, {})
        self._news = False  # the flush has told of a new state; `tick` acts on it
        self._merged: list[Segment] = []  # segments that are one file now; `tick` acts on it

    def open(self) -> None:
        """Take over the journal as it is on disk: fold every segment that is not wholly included yet."""
        with self.lock:
            self.journal.prepare()
            self._load()

    def _load(self) -> None:
        for _ in range(_OPEN_TRIES):
            try:
                self._merged.clear()
                self._reload_state()
                number, found = self._fold_sealed()
                self.journal.begin(number)
                # Whoever made the segment may have died before its name was on the disk.
                self.journal.sync_directory()
                self._follow(self.journal.open(number))
            except FileNotFoundError:
                continue  # a flush has just merged or forgotten a segment
            break
        else:
            raise JournalError("segments of the journal vanish while they are read")
        self.loads += 1
        self.tables.start(number)
        self.on_load()
        for page, known in recalled(found, self.included_to):
            self.on_read(page, known)
        self.catch_up()

    def _fold_sealed(self) -> tuple[int, list[Found]]:
        """Fold the sealed segments; return the number of the current one, and what was found in them."""
        sealed = []
        number = self.included_to + 1
        segments = self.journal.segments()
        found = [(segment, self.journal.read(segment)) for segment in segments if segment.last < number]
        for segment in segments:
            if segment.last < number:
                continue
            if segment.first > number > 1:
                log.error("journal segments %d to %d are missing", number, segment.first - 1)
            number = segment.first
            folded = self.journal.read(segment)
            if not folded.sealed_as:
                if not self.journal.is_followed(segment):
                    break
                # The power failed after the next segment was in use and before this one's seal was on the disk.
                folded = self.journal.seal(segment)
            self._note(folded, segment.last)
            sealed.append(Table(segment.first, segment.last, folded.visits, folded.sealed_as))
            found.append((segment, folded))
            number = segment.last + 1
        self.tables.reset(sealed, after=self.included_to)
        return number, found

    def close(self) -> None:
        """Put the last lines on the disk (not with `os`) and close the file."""
        with self.lock:
            if self._descriptor >= 0:
                try:
                    if self._dirty and self._every_second:
                        os.fdatasync(self._descriptor)
                except OSError as error:
                    log.error("the journal cannot be synced: %s", error.strerror)
                finally:
                    os.close(self._descriptor)
                    self._descriptor = -1

    # -- counting ----------------------------------------------------------------------------------------------

    def append(self, run: Sequence[tuple[str, int]]) -> list[int]:
        """Append visits with one write; return what each page has in the current segment once it counted.

        The list is shorter than `run` when the disk took only a part: what is missing was not counted. Raises
        JournalError, or JournalFullError at a limit, when surely nothing was counted, and UncertainError when the
        bytes may be in the journal: then nobody may try again.
        """
        data = b"".join(starmap(visit_line, run))
        if limit := self._limit_reached(len(data)):
            raise JournalFullError(limit)
        while True:
            try:
                written = os.write(self._descriptor, data)
            except OSError as error:
                self._failed = f"the journal cannot be written: {error.strerror}"
                raise JournalError(self._failed) from None
            try:
                end = os.lseek(self._descriptor, 0, os.SEEK_CUR)
                if steps.hook is not None:
                    steps.hook("append")
                if end - written == self._offset or not self._fold_others(end - written):
                    break
            except OSError as error:
                raise self._uncertain(f"the journal cannot be read: {error.strerror}") from None
        if written < len(data):
            run = self._whole_part(run, written)
        elif self._failed:
            self._failed = ""
        # From here on the visits are in the file, and everybody who follows it counts them, whatever becomes of them.
        self._offset = end
        counts = self.tables.current.count(run)
        if self._always_sync:
            self._sync_appended()
        else:
            self._dirty = True
        return counts

    def tell(self, reads: Sequence[tuple[str, Known]]) -> bool:
        """Append what was read of pages' stored counts, and follow it; tell whether all processes can know it now.

        Never raises: reads take no more than a share of what the journal may have, and none where the disk fails.
        """
        data = b"".join(starmap(read_line, reads))
        pages = {page for page, _ in reads}
        # Again if they came behind a seal, where nothing counts.
        for _ in range(_TELL_TRIES):
            if self._offset + self._other_bytes + len(data) > self._max_bytes // _READS_SHARE:
                return False
            try:
                segment = self.tables.current.last
                written = os.write(self._descriptor, data)
                self.catch_up()
            except OSError:
                return False
            if written < len(data):
                return False
            if self.tables.current.last == segment and pages <= self.tables.current.told:
                return True
        return False

    def read_retained(self) -> dict[Segment, Visits]:
        """Return the visits in the segments that all partitions should include. Reads files; takes no lock.

        Raises FileNotFoundError if one is forgotten meanwhile.
        """
        included_to, retained = self._retained
        if included_to != self.included_to:
            included_to = self.included_to
            segments = [segment for segment in self.journal.segments() if segment.last <= included_to]
            retained = {segment: self.journal.read(segment).visits for segment in segments}
            self._retained = included_to, retained
        return retained

    def is_sealed(self, segment: Segment) -> bool:
        """Tell whether a segment is sealed, as far as this process has followed the journal."""
        return segment.last < self.tables.current.last

    def refusal(self) -> str | None:
        """Tell why a visit could not be accepted now, or None."""
        if limit := self._limit_reached(_LINE_BYTES):
            return limit
        if (
            self._failed
            and os.statvfs(self.journal.path).f_bavail * os.statvfs(self.journal.path).f_frsize < _ROOM_BYTES
        ):
            return self._failed
        return None

    def catch_up(self) -> None:
        """Fold what others appended since the last look."""
        end = os.lseek(self._descriptor, 0, os.SEEK_END)
        while end != self._offset:
            before = self._offset, self._descriptor
            sealed = self._fold_others(end)
            if not sealed and before == (self._offset, self._descriptor):
                return  # a line that is not whole yet, or was cut: wait for what comes behind it
            end = os.lseek(self._descriptor, 0, os.SEEK_END)

    def pending_totals(self) -> tuple[int, int]:
        """Return (visits, pages) in all tables; a page in several segments is counted in each."""
        return self.tables.totals(self.included_to)

    def pending_pages(self) -> Iterator[tuple[str, int, int]]:
        """Give (page, visits, segment) of all that some partition may not include yet."""
        return self.tables.walk(self.included_to)

    # -- once a second -------------------------------------------------------------------------------------------

    def tick(self, rebase: Rebase) -> None:
        """Follow the journal, sync it and drop tables that every partition includes. Takes the lock itself.

        `rebase(page, visits, last)` is called, with the lock held, for each page of a table before it is dropped, so
        that a cached count older than segment `last` can be raised by these visits.
        """
        with self.lock:
            self.catch_up()
            descriptor = os.dup(self._descriptor) if self._dirty and self._every_second else -1
            self._dirty = False
            self._other_bytes = max(0, self.journal.size_bytes() - self._offset)
        if descriptor >= 0:
            # Without the lock: a slow disk must not hold up visits.
            try:
                os.fdatasync(descriptor)
            except OSError as error:
                log.error("the journal cannot be synced: %s", error.strerror)
            finally:
                os.close(descriptor)
        self._tidy(rebase)

    def _tidy(self, rebase: Rebase) -> None:
        with self.lock:
            # Looked at, not only waited for: the event is lost if the flush dies in between, or on a full disk.
            if self._news or self.journal.state_version() != self._state_version:
                self._news = False
                self._reload_state()
            merged, self._merged = self._merged, []
            done = [table for table in self.tables.sealed if table.last <= self.included_to]
        for table in done:
            self._rebase(table, rebase)
        with self.lock:
            self.tables.drop(done)
        for segment in merged:
            self._merge(segment, rebase)

    def _rebase(self, table: Table, rebase: Rebase) -> None:
        pages = list(table.visits.items())
        for start in range(0, len(pages), _TIDY_PAGES):
            with self.lock:
                for page, visits in pages[start : start + _TIDY_PAGES]:
                    rebase(page, visits, table.last)

    def _merge(self, whole: Segment, rebase: Rebase) -> None:
        """Put one table in the place of those of a merged file, which leaves out what its partition includes."""
        try:
            kept = self.journal.read(whole).visits
        except FileNotFoundError:
            return  # merged again or forgotten meanwhile, which is told too; the parts' own tables are as right
        with self.lock:
            parts = [table for table in self.tables.sealed if whole.first <= table.first and table.last <= whole.last]
        # What was left out is what some merge knew to be included, not what is known to be included now: the oldest
        # visits of a page, as many as the parts have and the merged file has not.
        left_out = {page: visits - kept.get(page, 0) for page, visits in total_of(parts).items()}

        def rebase_left_out(page: str, visits: int, last: int) -> None:
            if left_out[page] > 0:
                left_out[page] -= visits
                self._rebase_to(page, last, rebase)

        for table in parts:
            self._rebase(table, rebase_left_out)
        with self.lock:
            self.tables.replace(parts, Table(whole.first, whole.last, kept))

    def _rebase_to(self, page: str, last: int, rebase: Rebase) -> None:
        """Rebase one page from all tables up to segment `last`: its partition includes them, though others may not."""
        for table in self.tables.sealed:
            if table.last <= last and page in table.visits:
                rebase(page, table.visits[page], table.last)

    def _reload_state(self) -> None:
        self._state_version = self.journal.state_version()
        self.state = State.load(self.journal.state_path)
        self.included_to = max(self.included_to, self.state.floor)
        self.writer = self.journal.writer

    # -- following the file --------------------------------------------------------------------------------------

    def _fold_others(self, end: int) -> bool:
        """Fold the lines from where we are up to `end`; on a seal go on to the next segment and return True."""
        steps.step("fold")
        data = os.pread(self._descriptor, end - self._offset, self._offset)
        visits = read_visits(data)
        if visits is not None:
            self._offset += len(data)
            self.tables.current.count(visits)
            return False
        folded = Folded()
        folded.add(data)
        # First: if it fails, nothing of this has happened, and the next call meets the seal again.
        try:
            following = self.journal.open(self.tables.current.last + 1) if folded.sealed_as else -1
        except FileNotFoundError:
            # This process rested while the segment was flushed and forgotten, or merged. Made again, it would be taken
            # for the old one, and its visits for included.
            self._load()
            return True
        except OSError as error:
            self._failed = f"the next journal segment cannot be opened: {error.strerror}"
            raise JournalError(self._failed) from None
        self._offset += folded.consumed
        self._note(folded, self.tables.current.last)
        self.tables.current.count(folded.visits.items())
        for (page, losses, segment), stored in folded.known.items():
            self.tables.current.told.add(page)
            self.on_read(page, Known(losses, segment, stored))
        if not folded.sealed_as:
            return False
        self.tables.seal(folded.sealed_as)
        self._follow(following)
        return True

    def _follow(self, descriptor: int) -> None:
        """Go on in another segment, from its start."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._offset = descriptor, 0

    def _note(self, folded: Folded, number: int) -> None:
        if folded.unreadable:
            self.unreadable_lines += folded.unreadable
            log.warning("journal segment %d: %d unreadable lines are skipped", number, folded.unreadable)
        for event in folded.events:
            self._news = True
            if event.kind == MERGED:
                first, _, last = event.argument.partition(b"-")
                self._merged.append(Segment(int(first), int(last)))

    # -- limits and failures -------------------------------------------------------------------------------------

    def _limit_reached(self, size: int) -> str | None:
        """Tell which limit `size` more bytes would break, or None."""
        if self._offset + self._other_bytes + size > self._max_bytes:
            return f"the journal has reached its limit of {self._max_bytes} bytes"
        if self.tables.pages >= self._max_pages:
            return f"{self._max_pages} pages are pending, which is the limit"
        return None

    def _whole_part(self, run: Sequence[tuple[str, int]], written: int) -> Sequence[tuple[str, int]]:
        """Return the visits whose lines are whole in the first `written` bytes; raise JournalError for none."""
        kept = []
        for page, visits in run:
            written -= len(visit_line(page, visits))
            if written < 0:
                break
            kept.append((page, visits))
        self._failed = f"the journal cannot be written: {os.strerror(errno.ENOSPC)}"
        if not kept:
            raise JournalError(self._failed)
        return kept

    def _uncertain(self, reason: str) -> UncertainError:
        self._failed = reason
        return UncertainError(
            f"{reason}; the visit may have been counted, and may be counted twice if it is sent again"
        )

    def _sync_appended(self) -> None:
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise self._uncertain(f"the journal cannot be synced: {error.strerror}") from None
