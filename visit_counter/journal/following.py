"""Follows the journal: a process reads the lines of all processes, in the order of the file, into its own tables.

All methods expect the caller to hold `lock` unless they say otherwise, see `visit_counter.journal.buffer`.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING

from visit_counter import steps
from visit_counter.errors import JournalError, UncertainError
from visit_counter.journal.checkpoint import Checkpoint
from visit_counter.journal.directory import Segment
from visit_counter.journal.files import whole_lines
from visit_counter.journal.pending import Table, Tables
from visit_counter.journal.recall import recalled, unbroken
from visit_counter.journal.records import FEW_BYTES, Known, Replay, read_visits
from visit_counter.journal.segments import SealPlace
from visit_counter.journal.upkeep import Upkeep

if TYPE_CHECKING:
    from collections.abc import Callable

    from visit_counter.journal.absent import Absent
    from visit_counter.journal.recall import Found
    from visit_counter.journal.repair import Mending
    from visit_counter.journal.segments import Journal

log = logging.getLogger(__name__)

_OPEN_TRIES = 100
# A journal that begins with segment 2 has lost segment 1: that is the first file that a new journal gets.
_SECOND = 2


class Follower:
    """Replays the journal: its sealed segments at the start, and from then on the new lines of the current one."""

    # It has slots, because Python 3.11 reads an attribute slowly if an object has more than 30 and no slots, and every
    # visit reads several of these.
    __slots__ = (
        "_dirty",
        "_every_second",
        "_left",
        "_number",
        "_state_version",
        "absent",
        "descriptor",
        "failed",
        "halted",
        "included_to",
        "journal",
        "loads",
        "lock",
        "mending",
        "offset",
        "on_load",
        "on_read",
        "pages_at_hand",
        "state",
        "state_is_older",
        "tables",
        "tail",
        "upkeep",
        "writer",
        "writer_file",
    )

    # The buffer, which is derived from this class, makes these two.
    absent: Absent
    mending: Mending

    def __init__(self, journal: Journal, *, every_second: bool) -> None:
        self.journal = journal
        self.lock = threading.RLock()
        self.writer = ""  # the id in the state, under which the shards keep the watermarks
        self.writer_file = ""  # the id in the file `writer`; it differs while a flush takes a new id
        self.state = Checkpoint()
        # The texts of the pages that are being reported. The tables keep these, and not a second copy of each text that
        # was read back from the file.
        self.pages_at_hand: dict[str, str] = {}
        # Every partition includes the segments up to this one; their tables are dropped once they are rebased.
        self.included_to = 0
        # How often the journal was read from the start. A count that was cached before the last time is no longer
        # valid, since the tables whose visits are added to it may be gone. Each time `on_load` is called, and then
        # `on_read(page, known)` for each line `read` in the segments.
        self.loads = 0
        self.on_load: Callable[[], None] = lambda: None
        self.on_read: Callable[[str, Known], None] = lambda _page, _known: None
        self.tables = Tables()
        self.upkeep = Upkeep(self)
        self._number = 0  # the number of the segment that this process follows
        self.descriptor = -1  # the descriptor of its file
        self.offset = 0  # the place in the file up to which this process has read
        self.tail = b""  # the bytes before `offset`, which this process read or wrote last
        self.failed = ""  # why the last append failed
        self.halted = ""  # why all visits are refused, until the journal is mended
        self.state_is_older = False  # the state on the disk is older than the one that this process has read before
        self._every_second = every_second  # `tick` syncs the bytes that this process appends
        self._dirty = False  # this process has appended bytes that are not synced yet
        self._left: list[tuple[Segment, int]] = []  # earlier segments with unsynced bytes of this process
        self._state_version = (0, 0)

    def _load(self) -> None:
        """Read the journal from the start, and follow its current segment. Raises JournalError."""
        for _ in range(_OPEN_TRIES):
            try:
                self.upkeep.merged.clear()
                self.absent.clear()
                self.reload_state()
                number, found = self._replay_sealed()
                if self.journal.begin(number + 1, after=number, locked=self.mending.locked):
                    continue
                # The process that made the segment may have died before the segment's name was on the disk.
                self.journal.sync_directory()
                self._follow(number, self.journal.open(number))
            except FileNotFoundError:
                continue  # a flush has just merged or deleted a segment
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
        """Replay the segments before the last one; return the number of the one to follow, and all replays."""
        sealed = []
        number = self.included_to + 1
        segments = self.journal.segments()
        found = [(segment, self.journal.read(segment)) for segment in segments if segment.last < number]
        for segment in segments:
            if segment.last < number:
                continue
            if segment.first > number > 1:
                log.error("journal segments %d to %d are missing", number, segment.first - 1)
            if segment.first > number and (number > 1 or segment.first == _SECOND):
                self.absent.note(number, segment.first - 1)
            number = segment.first
            if segment == segments[-1] and segment.first == segment.last:
                break  # This is usually the current segment. It is read once, when it is followed.
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
        retained = [
            Table(segment.first, segment.last, replay.visits) for segment, replay in unbroken(found, self.included_to)
        ]
        self.tables.reset(sealed, retained, after=self.included_to, now=self.journal.now())
        return number, found

    def reload_state(self) -> None:
        """Read the flush's state. The lock is held."""
        self._state_version = self.journal.state_version()
        state = Checkpoint.load(self.journal.state_path)
        self.state_is_older = state.floor < self.state.floor
        if self.state_is_older:
            return
        self.state = state
        self.included_to = max(self.included_to, self.state.floor)
        self.writer_file = self.journal.writer
        # When a flush takes a new id, the file `writer` changes before the state. The flush sends no batch under the
        # new id until the state has it, too.
        self.writer = self.state.writer or self.writer_file

    def has_new_state(self) -> bool:
        """Return whether the state on the disk is not the one that was read last."""
        return self.journal.state_version() != self._state_version

    def catch_up(self) -> None:
        """Replay the lines that other processes have appended since the last call."""
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
                # The last line is not whole yet, or its append was cut; the next append continues on the same line.
                return
            end = os.lseek(self.descriptor, 0, os.SEEK_END)

    def _replay_others(self, end: int) -> bool:
        """Replay the lines from `offset` to `end`; after a seal, go on to the next segment and return True.

        Raises OSError if the file cannot be read, UncertainError if it was cut, and JournalError if it is sealed and
        the next segment cannot be opened: lines behind `end` surely do not count then.
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
        # The next segment is opened before anything changes here. If that fails, the next call reads the seal again.
        following = self._open_next(number) if replay.sealed_as else None
        if following == (0, -1):
            self._load()
            return True
        self.offset += replay.consumed
        self.tail = tail
        self.tables.current.note(replay)
        for (replayed, losses, segment), stored in replay.known.items():
            page = self.pages_at_hand.get(replayed, replayed)
            self.tables.current.reported[page] = None
            self.on_read(page, Known(losses, segment, stored))
        if following:
            self.tables.current.seal_at = SealPlace.of(self.descriptor, self.offset)
            self.tables.seal(replay.sealed_as)
            self._go_on(*following)
        self._note(replay, number)
        return following is not None

    def _replay_from_here(self, end: int) -> tuple[Replay, bytes]:
        """Return the sum of the lines up to `end`, and their last bytes."""
        replay, tail = Replay(), self.tail
        for data in whole_lines(self.descriptor, self.offset, end):
            before = replay.consumed
            replay.add(data)
            tail = data[: replay.consumed - before] or tail
        return replay, tail

    def _open_next(self, number: int) -> tuple[int, int]:
        """Return the number and descriptor of the segment after a sealed one, or (0, -1) to read the journal anew."""
        try:
            try:
                return number + 1, self.journal.open(number + 1)
            except FileNotFoundError:
                if any(segment.last > number for segment in self.journal.segments()):
                    # The next segment was flushed and deleted, or merged, while this process was idle. It must never
                    # be made again: every partition may include its number already, and visits in it would be lost.
                    return 0, -1
            # Somebody has removed the next segment. Its number stays free for the processes that know its content,
            # and this one goes on in the segment behind it.
            self.journal.begin(number + 2, after=number + 1, locked=self.mending.locked)
            descriptor = self.journal.open(number + 2)
            self.absent.note(number + 1, number + 1)
            return number + 2, descriptor
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
        """Go on in another segment, from its start. The file before it stays open until it is synced."""
        if self._dirty and self._every_second:
            self._left.append((Segment(self._number, self._number), self.descriptor))
        elif self.descriptor >= 0:
            os.close(self.descriptor)
        self._dirty = False
        self._number, self.descriptor, self.offset, self.tail = number, descriptor, 0, b""

    def _note(self, replay: Replay, number: int) -> None:
        """Act on the events, the fence and the unreadable lines in a piece of segment `number`."""
        if replay.unreadable:
            log.warning("journal segment %d: %d unreadable lines are skipped", number, replay.unreadable)
        if replay.fenced:
            self.mending.doubt(Segment(number, number), f"journal segment {number} is in doubt")
        for event in replay.events:
            self.upkeep.note(event)

    def _uncertain(self, reason: str) -> UncertainError:
        return UncertainError(
            f"{reason}; the visit may have been counted, and may be counted twice if it is sent again"
        )
