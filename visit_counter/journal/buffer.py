"""The write buffer: one process's view of the journal. It appends visits and knows what is pending.

Every process of a host appends to the same files and replays them, in their order, into tables of its own: one table
of visits per page for each segment that some partition may not include yet. The processes communicate in no other way.
So a worker counts the visits that another one has acknowledged as soon as it reads the file to its end.

All methods expect the caller to hold `lock` unless they say otherwise: the counter takes it once, around reading the
journal, the cached counts and the tables, and so sees all three at one moment.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from contextlib import suppress
from itertools import starmap
from typing import TYPE_CHECKING

from visit_counter import steps
from visit_counter.errors import JournalError, JournalFullError
from visit_counter.journal.absent import Absent
from visit_counter.journal.directory import Segment
from visit_counter.journal.following import Follower
from visit_counter.journal.records import Replay, read_line, visit_line
from visit_counter.journal.repair import Mending

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from visit_counter.journal.records import Known
    from visit_counter.journal.segments import Journal
    from visit_counter.journal.upkeep import Rebase
    from visit_counter.model.visits import Tally, Visit

log = logging.getLogger(__name__)

# The longest line of a visit.
_LINE_BYTES = 300
# Lines `read` may take one part in so many of the journal's allowed bytes. The rest is for visits.
_READS_SHARE = 2
_REPORT_TRIES = 5
# How long a flush waits for the lock.
_PATIENCE_SECONDS = 0.5


class WriteBuffer(Follower):
    """Appends visits to the journal and replays the lines of all processes.

    `fsync` is `always`, `everysec` or `os`; `max_bytes` bounds the journal's files and `max_pages` the
    pages pending in memory: beyond either, `append` refuses with JournalFullError.
    """

    __slots__ = (
        "_always_sync",
        "_bound",
        "_max_bytes",
        "_max_pages",
        "_other_bytes",
        "_retained",
        "_ticking",
        "known_of",
    )

    def __init__(
        self, journal: Journal, *, fsync: str = "everysec", max_bytes: int = 1 << 30, max_pages: int = 2_000_000
    ) -> None:
        super().__init__(journal, every_second=fsync == "everysec")
        self._ticking = threading.RLock()  # taken before `lock`
        self.absent = Absent(self)
        self.mending = Mending(self)
        # Returns the known counts of these pages. They are reported again if the lines that reported them may be gone.
        self.known_of: Callable[[Iterable[str]], list[tuple[str, Known]]] = lambda _pages: []
        self._always_sync = fsync == "always"
        self._max_bytes, self._max_pages = max_bytes, max_pages
        self._bound = max_bytes  # the most bytes that the journal may have; -1 while visits are refused
        self._other_bytes = 0  # the size of all segments but the current one
        self._retained: tuple[int, dict[Segment, Tally]] = (-1, {})

    def open(self, *, begin: bool = True) -> None:
        """Read the journal on the disk: replay every segment that is not wholly included yet.

        If there is no journal, make one; without `begin`, raise JournalError instead.
        """
        with self.lock:
            self.journal.prepare(begin=begin)
            self._load()
        self.mending.inspect()

    def close(self) -> None:
        """Sync the last lines (not with fsync `os`) and close the file."""
        with self.lock:
            if self.descriptor < 0:
                return
            unsynced = self._take_unsynced()
            os.close(self.descriptor)
            self.descriptor = -1
        self._sync(unsynced)

    # -- counting ----------------------------------------------------------------------------------------------

    def append(self, run: Sequence[Visit]) -> list[int]:
        """Append visits with one write; return for each visit the sum of its page in the current segment after it.

        The list is shorter than `run` if the disk took only a part: the other visits were not counted. Raises
        JournalError, or JournalFullError at a limit, if surely no visit was counted, and UncertainError if the
        bytes may be in the journal: then the caller must not try again.
        """
        data = b"".join(starmap(visit_line, run))
        self._check_limits(len(data))
        while True:
            try:
                written = os.write(self.descriptor, data)
            except OSError as error:
                self.failed = f"the journal cannot be written: {error.strerror}"
                raise JournalError(self.failed) from None
            try:
                end = os.lseek(self.descriptor, 0, os.SEEK_CUR)
                if steps.hook is not None:
                    steps.hook("append")
                if end - written == self.offset or not self._replay_others(end - written):
                    break
            except OSError as error:
                raise self._uncertain(f"the journal cannot be read: {error.strerror}") from None
            if self.absent:
                raise JournalError(self.halted)  # the visits were written behind a seal, where no line counts
        if written < len(data):
            run = self._whole_part(run, written)
            data = data[:written]
        elif self.failed:
            self.failed = ""
        # The visits are in the file now, and every process that follows it counts them, even if the sync below fails.
        self.offset = end
        self.tail = data
        counts = self.tables.current.visits.add(run)
        if self._always_sync:
            self._sync_appended()
        else:
            self._dirty = True
        return counts

    def report(self, reads: Sequence[tuple[str, Known]], *, mending: bool = False) -> bool:
        """Append a line `read` for each of these stored counts; return whether all processes can know them now.

        Never raises. Lines `read` take no more than a share of the journal's allowed bytes, and none are written while
        the disk fails or the journal is in doubt. `mending`: the caller has just begun a segment that is not in doubt.
        """
        data = b"".join(starmap(read_line, reads))
        self.pages_at_hand = pages = {page: page for page, _ in reads}
        # No line counts behind a seal. If these lines came behind one, they are appended again, to the next segment.
        for _ in range(_REPORT_TRIES):
            if self.halted and not mending:
                return False
            if self.offset + self._other_bytes + len(data) > self._max_bytes // _READS_SHARE:
                return False
            try:
                segment = self.tables.current.last
                written = os.write(self.descriptor, data)
                is_next = os.lseek(self.descriptor, 0, os.SEEK_CUR) - written == self.offset
                if is_next and written == len(data) and not mending:
                    self._follow_own(reads, data)
                else:
                    self.catch_up()
            except OSError:
                return False
            if written < len(data):
                return False
            if self.tables.current.last == segment and pages.keys() <= self.tables.current.reported.keys():
                return True
        return False

    def _follow_own(self, reads: Sequence[tuple[str, Known]], data: bytes) -> None:
        """Take in lines that this process wrote right behind the place it has read to, without reading them back."""
        self.offset += len(data)
        self.tail = data
        self.tables.current.keep(((page, known.losses, known.segment), known.stored) for page, known in reads)
        for page, known in reads:
            self.tables.current.reported[page] = None
            self.on_read(page, known)

    def pending_totals(self) -> tuple[int, int]:
        """Return (visits, pages) in all tables; a page in several segments is counted in each."""
        return self.tables.totals(self.included_to)

    def pending_pages(self) -> Iterator[tuple[str, int, int]]:
        """Give (page, visits, segment) of all segments that some partition may not include yet."""
        return self.tables.walk(self.included_to)

    def read_retained(self) -> dict[Segment, Tally]:
        """Return the visits in the segments that all partitions should include. Reads files; takes no lock.

        Raises FileNotFoundError if a flush deletes one meanwhile.
        """
        included_to, retained = self._retained
        if included_to != self.included_to:
            included_to = self.included_to
            segments = [segment for segment in self.journal.segments() if segment.last <= included_to]
            retained = {segment: self.journal.read(segment).visits for segment in segments}
            self._retained = included_to, retained
        return retained

    def followed(self, segment: Segment) -> Replay | None:
        """Return the content of a sealed segment if this process surely knows it, so that the file need not be read.

        It knows it if it has read the file from its first line to its seal, found only whole lines of visits and reads,
        and finds that seal at that place of that file now. For the flush, which holds its lock; takes the lock itself.
        """
        # A thread that holds the lock may be waiting for the flush lock; then the flush reads the file.
        if not self.lock.acquire(timeout=_PATIENCE_SECONDS):
            return None
        try:
            with self.mending.no_lock_needed(), suppress(JournalError):
                self.catch_up()
            table = self.tables.of(segment)
            if self.halted or self.mending.doubtful or table is None or table.known is None:
                return None
        finally:
            self.lock.release()
        if table.seal_at is None or not self.journal.is_sealed_at(segment, table.token, table.seal_at):
            return None
        # The table of a sealed segment is never changed from here on.
        lines = table.visits.total + len(table.known)
        return Replay(table.visits, table.known, table.token, lines=lines, consumed=table.seal_at.end)

    def is_sealed(self, segment: Segment) -> bool:
        """Return whether a segment is sealed, as far as this process has read the journal."""
        return segment.last < self.tables.current.last

    def is_renamed(self) -> bool:
        """Return whether a flush may now use another writer's id than `writer`. Reads files; takes no lock."""
        with suppress(JournalError):
            return self.has_new_state() and self.journal.writer != self.writer
        return False

    def refusal(self) -> str | None:
        """Return why a visit cannot be accepted now (a limit, or the last append or sync failed), or None."""
        return self._limit_reached(_LINE_BYTES) or self.failed or None

    def halt(self, reason: str) -> None:
        """Refuse all visits until `resume`. The lock is held."""
        if not self.halted:
            log.error("%s; visits are refused until the journal is mended", reason)
        self.halted, self._bound = reason, -1

    def resume(self) -> None:
        """Accept visits again, unless this process lacks a segment that others may know. The lock is held."""
        self.absent.look_again()
        if self.absent:
            return
        if self.halted:
            log.warning("the journal is mended; visits are accepted again")
        self.halted, self._bound = "", self._max_bytes

    # -- once a second -------------------------------------------------------------------------------------------

    def tick(self, rebase: Rebase) -> None:
        """Follow the journal, sync it and drop tables that every partition includes. Takes the lock itself.

        `rebase(page, visits, last)` is called, with the lock held, for each page of a table before it is dropped, so
        that a cached count older than segment `last` can be raised by these visits.
        """
        with self._ticking:
            self._tick(rebase)

    def _tick(self, rebase: Rebase) -> None:
        with self.lock:
            with suppress(JournalError):  # `inspect` finds the damage to the files
                self.catch_up()
            unsynced = self._take_unsynced()
        self._sync(unsynced)
        # A file is mended from its table. So no table is dropped before it was compared with its file.
        if self.mending.inspect():
            self._other_bytes = max(0, self.journal.size_bytes() - self.offset)
            self.upkeep.tidy(rebase)

    def _take_unsynced(self) -> list[tuple[Segment, int]]:
        """Return the files with unsynced bytes of this process, each with a descriptor of its own."""
        unsynced, self._left = self._left, []
        if self._dirty and self._every_second:
            unsynced.append((Segment(self._number, self._number), os.dup(self.descriptor)))
        self._dirty = False
        return unsynced

    def _sync(self, unsynced: list[tuple[Segment, int]]) -> None:
        """Sync files and close them. The lock is not held: a slow disk must not hold up visits."""
        for segment, descriptor in unsynced:
            try:
                os.fdatasync(descriptor)
            except OSError as error:
                with self.lock:
                    reason = f"the journal cannot be synced: {error.strerror}"
                    self.mending.doubt(segment, reason, unsynced=True)
            finally:
                os.close(descriptor)

    # -- limits and failures -------------------------------------------------------------------------------------

    def _check_limits(self, size: int) -> None:
        if limit := self._limit_reached(size):
            raise JournalError(limit) if self.halted else JournalFullError(limit)

    def _limit_reached(self, size: int) -> str | None:
        """Return the limit that `size` more bytes would break, or None."""
        if self.offset + self._other_bytes + size > self._bound:
            if self.halted:
                return self.halted
            return f"the journal has reached its limit of {self._max_bytes} bytes"
        if self.tables.pages >= self._max_pages:
            return f"{self._max_pages} pages are pending, which is the limit"
        return None

    def _whole_part(self, run: Sequence[Visit], written: int) -> Sequence[Visit]:
        """Return the visits whose lines are whole in the first `written` bytes; raise JournalError for none."""
        kept = []
        self.tables.current.known = None  # the file now has a piece of a line
        for visit in run:
            written -= len(visit_line(*visit))
            if written < 0:
                break
            kept.append(visit)
        self.failed = f"the journal cannot be written: {os.strerror(errno.ENOSPC)}"
        if not kept:
            raise JournalError(self.failed)
        return kept

    def _sync_appended(self) -> None:
        try:
            os.fdatasync(self.descriptor)
        except OSError as error:
            reason = f"the journal cannot be synced: {error.strerror}"
            self.mending.doubt(Segment(self._number, self._number), reason, unsynced=True)
            raise self._uncertain(reason) from None
