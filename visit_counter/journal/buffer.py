"""The write buffer: one process's view of the journal. It appends visits and knows what is pending.

Every process of a host appends to the same files and replays them, in their order, into tables of its own: one table
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
from contextlib import suppress
from itertools import starmap
from typing import TYPE_CHECKING

from visit_counter import steps
from visit_counter.errors import JournalError, JournalFullError, UncertainError
from visit_counter.journal.checkpoint import Checkpoint
from visit_counter.journal.pending import Table, Tables
from visit_counter.journal.recall import recalled
from visit_counter.journal.records import (
    AGAIN,
    FEW_BYTES,
    FLUSHED,
    MERGED,
    REREAD,
    WHOLE,
    Known,
    Record,
    Replay,
    read_line,
    read_visits,
    visit_line,
)
from visit_counter.journal.repair import Mending
from visit_counter.journal.segments import Journal, Segment, whole_lines
from visit_counter.model.visits import together

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from visit_counter.journal.recall import Found
    from visit_counter.model.visits import Tally, Visit

log = logging.getLogger(__name__)

Rebase = Callable[[str, int, int], None]
# How many pages one call of `tidy` handles under the lock: a few hundred microseconds.
_TIDY_PAGES = 256
_OPEN_TRIES = 100
# The longest line of a visit.
_LINE_BYTES = 300
# Reads are told up to this share of what the journal may take: the rest is for visits.
_READS_SHARE = 2
_REPORT_TRIES = 5


class WriteBuffer:
    """Appends visits to the journal and replays what all processes appended.

    `fsync` is `always`, `everysec` or `os`; `max_bytes` bounds the journal's files and `max_pages` the
    pages pending in memory: beyond either, `append` refuses with JournalFullError.
    """

    # Slots, because an object with more than 30 attributes and no slots is read slowly (Python 3.11), and every visit
    # reads several of these.
    __slots__ = (
        "_always_sync",
        "_bound",
        "_changed",
        "_compacted",
        "_dirty",
        "_every_second",
        "_left",
        "_max_bytes",
        "_max_pages",
        "_number",
        "_other_bytes",
        "_retained",
        "_state_version",
        "_ticking",
        "descriptor",
        "failed",
        "halted",
        "included_to",
        "journal",
        "known_of",
        "loads",
        "lock",
        "mending",
        "offset",
        "on_load",
        "on_read",
        "state",
        "state_is_older",
        "tables",
        "tail",
        "writer",
        "writer_file",
    )

    def __init__(
        self, journal: Journal, *, fsync: str = "everysec", max_bytes: int = 1 << 30, max_pages: int = 2_000_000
    ) -> None:
        self.journal = journal
        self.lock = threading.RLock()
        self._ticking = threading.RLock()  # taken before `lock`
        self.writer = ""  # the id that the state says watermarks are under
        self.writer_file = ""  # what the file `writer` said: another one while a flush takes a new id
        self.state = Checkpoint()
        # Every partition includes the segments up to this one; their tables are dropped once they are rebased.
        self.included_to = 0
        # How often the journal was read from the start. What was known before the last time is void: the tables that
        # it relied on may be gone. `on_load` is called then, and `on_read(page, known)` for what the segments say.
        self.loads = 0
        self.on_load: Callable[[], None] = lambda: None
        self.on_read: Callable[[str, Known], None] = lambda _page, _known: None
        # Gives what is known of these pages now, to be told again where the lines that told of them may be gone.
        self.known_of: Callable[[Iterable[str]], list[tuple[str, Known]]] = lambda _pages: []
        self._always_sync = fsync == "always"
        self._every_second = fsync == "everysec"
        self._max_bytes, self._max_pages = max_bytes, max_pages
        self._bound = max_bytes  # of the journal, or less than nothing while visits are refused
        self.tables = Tables()
        self._other_bytes = 0  # what the journal takes besides the current segment
        self._number = 0  # of the segment that is followed
        self.descriptor = -1  # of its file
        self.offset = 0  # up to where it was followed
        self.tail = b""  # what was read or written last: the bytes before `offset`
        self.failed = ""  # why the last append failed
        self.halted = ""  # why all visits are refused, until the journal is mended
        self.state_is_older = False  # on the disk, than what this process has seen
        self.mending = Mending(self)
        self._dirty = False
        self._left: list[tuple[Segment, int]] = []  # files that hold bytes of ours which are not synced yet
        self._state_version = (0, 0)
        self._retained: tuple[int, dict[Segment, Tally]] = (-1, {})
        self._changed = False  # the flush has told of a new state; `tick` acts on it
        self._compacted: list[Segment] = []  # segments that are one file now; `tick` acts on it

    def open(self, *, begin: bool = True) -> None:
        """Take over the journal as it is on disk: replay every segment that is not wholly included yet.

        Where there is no journal one is made; without `begin` that raises JournalError.
        """
        with self.lock:
            self.journal.prepare(begin=begin)
            self._load()
        self.mending.inspect()

    def _load(self) -> None:
        for _ in range(_OPEN_TRIES):
            try:
                self._compacted.clear()
                self._reload_state()
                number, found = self._replay_sealed()
                if self.journal.begin(number + 1, after=number, locked=self.mending.locked):
                    continue
                # Whoever made the segment may have died before its name was on the disk.
                self.journal.sync_directory()
                self._follow(number, self.journal.open(number))
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

    def _replay_sealed(self) -> tuple[int, list[Found]]:
        """Replay the segments before the last one; return the number of the one to follow, and what was found."""
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
            if segment == segments[-1] and segment.first == segment.last:
                break  # the current one, mostly: it is read once, by following it
            replay = self.journal.read(segment)
            if not replay.sealed_as:
                if not self.journal.is_followed(segment):
                    break
                # The power failed after the next segment was in use and before this one's seal was on the disk.
                replay = self.journal.seal(segment)
            self._note(replay, segment.last)
            sealed.append(Table(segment.first, segment.last, replay.visits, replay.sealed_as))
            found.append((segment, replay))
            number = segment.last + 1
        self.tables.reset(sealed, after=self.included_to)
        return number, found

    def close(self) -> None:
        """Put the last lines on the disk (not with `os`) and close the file."""
        with self.lock:
            if self.descriptor < 0:
                return
            unsynced = self._take_unsynced()
            os.close(self.descriptor)
            self.descriptor = -1
        self._sync(unsynced)

    # -- counting ----------------------------------------------------------------------------------------------

    def append(self, run: Sequence[Visit]) -> list[int]:
        """Append visits with one write; return what each page has in the current segment once it counted.

        The list is shorter than `run` when the disk took only a part: what is missing was not counted. Raises
        JournalError, or JournalFullError at a limit, when surely nothing was counted, and UncertainError when the
        bytes may be in the journal: then nobody may try again.
        """
        data = b"".join(starmap(visit_line, run))
        if limit := self._limit_reached(len(data)):
            raise JournalError(limit) if self.halted else JournalFullError(limit)
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
        if written < len(data):
            run = self._whole_part(run, written)
            data = data[:written]
        elif self.failed:
            self.failed = ""
        # From here on the visits are in the file, and everybody who follows it counts them, whatever becomes of them.
        self.offset = end
        self.tail = data
        counts = self.tables.current.visits.add(run)
        if self._always_sync:
            self._sync_appended()
        else:
            self._dirty = True
        return counts

    def report(self, reads: Sequence[tuple[str, Known]], *, mending: bool = False) -> bool:
        """Append what was read of pages' stored counts, and follow it; tell whether all processes can know it now.

        Never raises: reads take no more than a share of what the journal may have, and none where the disk fails or
        the journal is in doubt. `mending`: the caller has just begun a segment that is not.
        """
        data = b"".join(starmap(read_line, reads))
        pages = {page for page, _ in reads}
        # Again if they came behind a seal, where nothing counts.
        for _ in range(_REPORT_TRIES):
            if self.halted and not mending:
                return False
            if self.offset + self._other_bytes + len(data) > self._max_bytes // _READS_SHARE:
                return False
            try:
                segment = self.tables.current.last
                written = os.write(self.descriptor, data)
                self.catch_up()
            except OSError:
                return False
            if written < len(data):
                return False
            if self.tables.current.last == segment and pages <= self.tables.current.reported:
                return True
        return False

    def read_retained(self) -> dict[Segment, Tally]:
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

    def is_renamed(self) -> bool:
        """Tell whether a flush may have gone on under another writer's id than `writer`. Reads files; takes no lock."""
        with suppress(JournalError):
            return self.journal.state_version() != self._state_version and self.journal.writer != self.writer
        return False

    def refusal(self) -> str | None:
        """Tell why a visit could not be accepted now: a limit, or the last append or sync failed. Else None."""
        return self._limit_reached(_LINE_BYTES) or self.failed or None

    def halt(self, reason: str) -> None:
        """Refuse all visits until `resume`. The lock is held."""
        if not self.halted:
            log.error("%s; visits are refused until the journal is mended", reason)
        self.halted, self._bound = reason, -1

    def resume(self) -> None:
        """Accept visits again. The lock is held."""
        if self.halted:
            log.warning("the journal is mended; visits are accepted again")
        self.halted, self._bound = "", self._max_bytes

    def catch_up(self) -> None:
        """Replay what others have appended since the last call."""
        end = os.lseek(self.descriptor, 0, os.SEEK_END)
        while end != self.offset:
            if end < self.offset or self.mending.cut_at >= 0:
                self.mending.note_cut(end)
                return
            before = self.offset, self.descriptor
            try:
                sealed = self._replay_others(end)
            except UncertainError:
                return  # the file was cut
            if not sealed and before == (self.offset, self.descriptor):
                return  # a line that is not whole yet, or was cut: wait for what comes behind it
            end = os.lseek(self.descriptor, 0, os.SEEK_END)

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
        with self._ticking:
            self._tick(rebase)

    def _tick(self, rebase: Rebase) -> None:
        with self.lock:
            with suppress(JournalError):  # what is wrong with the files is found below
                self.catch_up()
            unsynced = self._take_unsynced()
        self._sync(unsynced)
        # Tables are not dropped before what they know is compared.
        if self.mending.inspect():
            self._other_bytes = max(0, self.journal.size_bytes() - self.offset)
            self._tidy(rebase)

    def _take_unsynced(self) -> list[tuple[Segment, int]]:
        """Return the files, with descriptors of their own, that have bytes of this process to be synced."""
        unsynced, self._left = self._left, []
        if self._dirty and self._every_second:
            unsynced.append((Segment(self._number, self._number), os.dup(self.descriptor)))
        self._dirty = False
        return unsynced

    def _sync(self, unsynced: list[tuple[Segment, int]]) -> None:
        """Sync files and close them. Without the lock: a slow disk must not hold up visits."""
        for segment, descriptor in unsynced:
            try:
                os.fdatasync(descriptor)
            except OSError as error:
                with self.lock:
                    reason = f"the journal cannot be synced: {error.strerror}"
                    self.mending.doubt(segment, reason, unsynced=True)
            finally:
                os.close(descriptor)

    def _tidy(self, rebase: Rebase) -> None:
        with self.lock:
            # Looked at, not only waited for: the event is lost if the flush dies in between, or on a full disk.
            if self._changed or self.journal.state_version() != self._state_version:
                self._changed = False
                self._reload_state()
            merged, self._compacted = self._compacted, []
            done = [table for table in self.tables.sealed if table.last <= self.included_to]
        for table in done:
            self._rebase(table, rebase)
        with self.lock:
            self.tables.drop(done)
        for segment in merged:
            self._replace_parts(segment, rebase)

    def _rebase(self, table: Table, rebase: Rebase) -> None:
        pages = list(table.visits.items())
        for start in range(0, len(pages), _TIDY_PAGES):
            with self.lock:
                for page, visits in pages[start : start + _TIDY_PAGES]:
                    rebase(page, visits, table.last)

    def _replace_parts(self, whole: Segment, rebase: Rebase) -> None:
        """Put one table in the place of those of a merged file, which leaves out what its partition includes."""
        try:
            merged = self.journal.read(whole)
        except FileNotFoundError:
            return  # merged again or forgotten meanwhile, which is told too; the parts' own tables are as right
        kept = merged.visits
        with self.lock:
            parts = [table for table in self.tables.sealed if whole.first <= table.first and table.last <= whole.last]
        # What was left out is what some merge knew to be included, not what is known to be included now: the oldest
        # visits of a page, as many as the parts have and the merged file has not.
        left_out = dict(together(table.visits for table in parts).minus(kept))

        def rebase_left_out(page: str, visits: int, last: int) -> None:
            if left_out.get(page, 0) > 0:
                left_out[page] -= visits
                self._rebase_to(page, last, rebase)

        for table in parts:
            self._rebase(table, rebase_left_out)
        with self.lock:
            self.tables.replace(parts, Table(whole.first, whole.last, kept, merged.sealed_as))

    def _rebase_to(self, page: str, last: int, rebase: Rebase) -> None:
        """Rebase one page from all tables up to segment `last`: its partition includes them, though others may not."""
        for table in self.tables.sealed:
            if table.last <= last and page in table.visits:
                rebase(page, table.visits[page], table.last)

    def _reload_state(self) -> None:
        self._state_version = self.journal.state_version()
        state = Checkpoint.load(self.journal.state_path)
        self.state_is_older = state.floor < self.state.floor
        if self.state_is_older:
            return
        self.state = state
        self.included_to = max(self.included_to, self.state.floor)
        self.writer_file = self.journal.writer
        # Under a new id nothing is sent before the state says so.
        self.writer = self.state.writer or self.writer_file

    # -- following the file --------------------------------------------------------------------------------------

    def _replay_others(self, end: int) -> bool:
        """Replay the lines from where we are up to `end`; on a seal go on to the next segment and return True.

        Raises OSError if the file cannot be read, UncertainError if it was cut, and JournalError if it is sealed and
        there is no going on: what is behind `end` surely does not count then.
        """
        if end < self.offset:
            self.mending.note_cut(end)
            raise self._uncertain(self.halted)
        steps.step("replay")
        if end - self.offset <= FEW_BYTES:
            data = os.pread(self.descriptor, end - self.offset, self.offset)
            visits = read_visits(data)
            if visits is not None:
                self.offset += len(data)
                self.tail = data
                self.tables.current.visits.add(visits)
                return False
        if not self.mending.is_continued():
            self.mending.note_cut(end)
            raise self._uncertain(self.halted)
        replay, tail = self._replay_from_here(end)
        number = self.tables.current.last
        # First: if it fails, nothing of this has happened, and the next call meets the seal again.
        following = self._open_next(number) if replay.sealed_as else None
        if following == (0, -1):
            self._load()
            return True
        self.offset += replay.consumed
        self.tail = tail
        self.tables.current.visits.merge(replay.visits)
        for (page, losses, segment), stored in replay.known.items():
            self.tables.current.reported.add(page)
            self.on_read(page, Known(losses, segment, stored))
        if following:
            self.tables.seal(replay.sealed_as)
            self._go_on(*following)
        self._note(replay, number)
        return following is not None

    def _replay_from_here(self, end: int) -> tuple[Replay, bytes]:
        """Return what the lines up to `end` add up to, and the last bytes of them."""
        replay, tail = Replay(), self.tail
        for data in whole_lines(self.descriptor, self.offset, end):
            before = replay.consumed
            replay.add(data)
            tail = data[: replay.consumed - before] or tail
        return replay, tail

    def _open_next(self, number: int) -> tuple[int, int]:
        """Return the number and descriptor of the segment after a sealed one; (0, -1): read the journal anew."""
        try:
            try:
                return number + 1, self.journal.open(number + 1)
            except FileNotFoundError:
                if any(segment.last > number for segment in self.journal.segments()):
                    # This process rested while the segment was flushed and forgotten, or merged. Made again, it would
                    # be taken for the old one, and its visits for included.
                    return 0, -1
            # The next one was removed. It is theirs who know it; we never did.
            self.journal.begin(number + 2, after=number + 1, locked=self.mending.locked)
            return number + 2, self.journal.open(number + 2)
        except OSError as error:
            self.failed = f"the next journal segment cannot be opened: {error.strerror}"
            raise JournalError(self.failed) from None

    def leave(self, token: str) -> None:
        """Go on in the segment after the current one, which has this token. Raises JournalError. The lock is held."""
        following = self._open_next(self.tables.current.last)
        if following == (0, -1):
            self._load()
            return
        self.tables.seal(token)
        self._go_on(*following)

    def _go_on(self, number: int, descriptor: int) -> None:
        self.tables.start(number)
        self._follow(number, descriptor)

    def _follow(self, number: int, descriptor: int) -> None:
        """Go on in another segment, from its start. What we wrote into this one is still to be synced."""
        if self._dirty and self._every_second:
            self._left.append((Segment(self._number, self._number), self.descriptor))
        elif self.descriptor >= 0:
            os.close(self.descriptor)
        self._dirty = False
        self._number, self.descriptor, self.offset, self.tail = number, descriptor, 0, b""

    def _note(self, replay: Replay, number: int) -> None:
        if replay.unreadable:
            log.warning("journal segment %d: %d unreadable lines are skipped", number, replay.unreadable)
        if replay.fenced:
            self.mending.doubt(Segment(number, number), f"journal segment {number} is in doubt")
        for event in replay.events:
            if event.kind in (FLUSHED, MERGED):
                self._changed = True
            if event.kind in (MERGED, REREAD, AGAIN):
                self._note_segment(event)

    def _note_segment(self, event: Record) -> None:
        numbers, _, what = event.argument.partition(b" ")
        first, _, last = numbers.partition(b"-")
        segment = Segment(int(first), int(last))
        if event.kind == MERGED:
            self._compacted.append(segment)
        elif event.kind == REREAD:
            if segment not in self.mending.doubtful:
                self.reread(segment)
        else:
            # Its visits are counted, whoever knew them; what is left of it is what was sent.
            mine = self.mending.doubtful.pop(segment, None)
            if what == WHOLE:
                self.tables.remove(segment.range)
            elif mine is not None and mine.held is not None:
                self._put(segment, mine.held, mine.token)
            else:
                self.reread(segment)

    def reread(self, segment: Segment) -> None:
        """Put what a segment's file holds in the place of its table, if it is there. Takes the lock itself."""
        with suppress(FileNotFoundError):
            replay = self.journal.read(segment)
            with self.lock:
                self._put(segment, replay.visits, replay.sealed_as)

    def _put(self, segment: Segment, visits: Tally, token: str) -> None:
        whole = Table(*segment.range, visits, token)
        for table in self.tables.sealed:
            if (table.first, table.last) == segment.range:
                self.tables.replace([table], whole)
                whole.token = token
                return
        if segment.last > self.included_to:
            self.tables.insert(whole)  # it was missing when this process began

    # -- limits and failures -------------------------------------------------------------------------------------

    def _limit_reached(self, size: int) -> str | None:
        """Tell which limit `size` more bytes would break, or None."""
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
        for visit in run:
            written -= len(visit_line(*visit))
            if written < 0:
                break
            kept.append(visit)
        self.failed = f"the journal cannot be written: {os.strerror(errno.ENOSPC)}"
        if not kept:
            raise JournalError(self.failed)
        return kept

    def _uncertain(self, reason: str) -> UncertainError:
        return UncertainError(
            f"{reason}; the visit may have been counted, and may be counted twice if it is sent again"
        )

    def _sync_appended(self) -> None:
        try:
            os.fdatasync(self.descriptor)
        except OSError as error:
            reason = f"the journal cannot be synced: {error.strerror}"
            self.mending.doubt(Segment(self._number, self._number), reason, unsynced=True)
            raise self._uncertain(reason) from None
