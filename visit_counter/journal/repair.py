"""Mending the journal's files from the tables of the processes, after a sync failed or somebody removed or cut a file.

A process adds up the lines of a segment in a table, in the order of the file. So of two processes, the one that has
read further in the file knows everything that the other one knows. A process can write a segment anew from its table:

1. If the current segment is in doubt, a process makes the next segment and then appends a *fence* to the current one.
   A fence is a seal that says that the file is in doubt. No line behind it counts: a process that meets the fence goes
   on in the next segment.
2. From the fence on (or from the moment at which it finds damage), each process refuses visits until it has compared
   its table with the segment's file, under the flush lock. If the file lacks visits or ends with a fence, the process
   writes a new file, syncs it and renames it over the old one. A later sync of the old file would prove nothing.
3. The flush does not send such a segment before every process has had the time to compare. A process that comes later
   than that appends the visits that the file lacked to the current segment, behind a line `again`.

If a step fails, the process goes on refusing visits, and tries again each second.
"""

from __future__ import annotations

import errno
import logging
import os
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from typing import TYPE_CHECKING

from visit_counter.errors import JournalError
from visit_counter.journal.checkpoint import GIVEN_UP, Checkpoint
from visit_counter.journal.files import is_file_at
from visit_counter.journal.records import AGAIN, PROBE, REREAD, WHOLE, Replay, encode, tally_lines
from visit_counter.journal.segments import Content, Segment
from visit_counter.model.visits import together
from visit_counter.shards.contract import segment_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from visit_counter.journal.buffer import WriteBuffer
    from visit_counter.model.visits import Tally

log = logging.getLogger(__name__)

# How many of the bytes that this process read last are compared with the file.
_TAIL_BYTES = 256
# Larger than a block: a smaller line might still fit into the last block of a disk that is full.
_PROBE_BYTES = 4096


class Mending:
    """The damage to the journal's files that one process has found, and how this process mends it."""

    def __init__(self, buffer: WriteBuffer) -> None:
        self._buffer = buffer
        self._journal = buffer.journal
        # The size of the current segment's file when it was found shorter than what this process had read; else -1.
        self.cut_at = -1
        # Segments to compare or to write anew. The value is the content to write, or None if that is the table's.
        self.doubtful: dict[Segment, Content | None] = {}
        self._unsynced: set[Segment] = set()  # the doubtful segments whose bytes may not be on the disk
        # Waiting segments whose files were found to be right, with the files' inode, size and time of change.
        self._inspected: dict[Segment, tuple[int, int, int]] = {}
        self._reported_again: set[Segment] = set()  # the doubtful segments whose lines `read` were reported again
        self._reason = ""  # why visits are refused
        self._notes: list[str] = []  # notes of damage that are not on the disk yet
        self.locked = False  # this process holds the flush lock, so no function called now may wait for it

    def doubt(self, segment: Segment, reason: str, *, unsynced: bool = False) -> None:
        """Refuse visits until a segment is surely on the disk as this process knows it. The lock is held."""
        self.doubtful.setdefault(segment, None)
        if unsynced:
            self._unsynced.add(segment)
        self._reason = self._reason or reason
        self._buffer.halt(reason)

    def note_cut(self, end: int) -> None:
        """Note that the current segment's file ends, at byte `end`, before the place this process has read to.

        The lock is held.
        """
        if self.cut_at < 0:
            self.cut_at = end
        current = self._buffer.tables.current.last
        self.doubt(Segment(current, current), f"journal segment {current} was cut")

    @contextmanager
    def no_lock_needed(self) -> Iterator[None]:
        """Keep the calls in this block from waiting for the flush lock, which this process holds.

        The buffer's lock is held.
        """
        before, self.locked = self.locked, True
        try:
            yield
        finally:
            self.locked = before

    # -- once a second ---------------------------------------------------------------------------------------------

    def inspect(self) -> bool:
        """Find damage to the files and mend it; return whether all is well now. Takes the buffer's lock itself."""
        buffer = self._buffer
        try:
            with buffer.lock:
                wrong = self._wrong_with_current()
                waiting = [table for table in buffer.tables.sealed if table.last > buffer.included_to]
            missed = [Segment(t.first, t.last) for t in waiting if not self._is_as_known(t.first, t.last, t.token)]
            in_doubt = self.doubtful or self._journal.find_doubtful() or buffer.absent
            if wrong or missed or in_doubt or self._home_is_wrong():
                self._mend(missed)
            else:
                self._try_again()
        except BlockingIOError:
            with buffer.lock:
                buffer.absent.wait_longer()
            return False  # a flush is under way: the next call, in a second, tries again
        except (OSError, JournalError) as error:
            with buffer.lock:
                buffer.halt(f"the journal cannot be mended: {getattr(error, 'strerror', None) or error}")
            return False
        return True

    def _wrong_with_current(self) -> str:
        """Return what is wrong with the file of the current segment, or "". The lock is held."""
        buffer, current = self._buffer, self._buffer.tables.current.last
        segment = Segment(current, current)
        size = os.fstat(buffer.descriptor).st_size
        if self.cut_at >= 0 or size < buffer.offset or not self.is_continued():
            wrong = "was cut"
            self.cut_at = min(self.cut_at, size) if self.cut_at >= 0 else size
        elif is_file_at(buffer.descriptor, self._journal.path / segment.name):
            return ""
        else:
            # A flush may have sealed the segment; only after that does it shorten, merge or delete the file.
            with suppress(JournalError):
                buffer.catch_up()
            if buffer.tables.current.last != current:
                return self._wrong_with_current()
            wrong = "is gone, or another file is in its place"
        self.doubt(segment, f"journal segment {current} {wrong}")
        return wrong

    def is_continued(self) -> bool:
        """Return whether the file still holds the bytes that this process read last. The lock is held."""
        tail = self._buffer.tail[-_TAIL_BYTES:]
        return os.pread(self._buffer.descriptor, len(tail), self._buffer.offset - len(tail)) == tail

    def _is_as_known(self, first: int, last: int, token: str) -> bool:
        """Return whether a waiting segment's file exists and has the seal that this process knows."""
        segment = Segment(first, last)
        path = self._journal.path / segment.name
        try:
            status = os.stat(path)  # noqa: PTH116 - of the simulated `os` in tests
            seen = (status.st_ino, status.st_size, status.st_mtime_ns)
            if self._inspected.get(segment) != seen:
                if token != self._journal.token_of(segment):
                    return False
                self._inspected[segment] = seen
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def _home_is_wrong(self) -> bool:
        buffer, journal = self._buffer, self._journal
        no_state = bool(buffer.state.writer) and journal.state_version() == (0, 0)
        return no_state or buffer.state_is_older or not os.path.exists(journal.path / "writer")  # noqa: PTH110 - as above

    def _try_again(self) -> None:
        """Append a test line after a failure, and accept visits again if that succeeds.

        Without it the service would stay unhealthy for as long as no visitor comes.
        """
        buffer = self._buffer
        with buffer.lock:
            if buffer.failed:
                line = encode(PROBE, b"0" * _PROBE_BYTES)
                with suppress(OSError):
                    if os.write(buffer.descriptor, line) == len(line):
                        buffer.failed = ""
                buffer.catch_up()
            buffer.resume()

    # -- mending -----------------------------------------------------------------------------------------------------

    def _mend(self, missed: list[Segment]) -> None:
        buffer, journal = self._buffer, self._journal
        with ExitStack() as stack:
            with buffer.lock:
                journal.path.mkdir(mode=0o700, parents=True, exist_ok=True)
                stack.enter_context(journal.flush_lock(wait=False))
                stack.callback(setattr, self, "locked", False)
                self.locked = True
                state = self._restore_home()
                buffer.catch_up()
                if self._wrong_with_current() or self._current_is_unsynced():
                    self._leave_current()
                    buffer.catch_up()
                for segment in (*missed, *journal.find_doubtful()):
                    self.doubtful.setdefault(segment, None)
                self._unsynced |= journal.find_doubtful()
                todo = [(segment, content or self._known(segment)) for segment, content in self.doubtful.items()]
                self._report_again()
            for segment, mine in todo:
                if mine is not None and self._restore(segment, mine, state):
                    reason = self._reason or f"journal segment {segment.last} was removed or changed"
                    self._notes.append(f"{reason}: segment {segment.last} was written anew")
                buffer.upkeep.reread(segment)
                with buffer.lock:
                    self._unsynced.discard(segment)
                    journal.forget_doubt(segment)
                    self.doubtful.pop(segment, None)
            if self._notes:
                for note in self._notes:
                    state.note_damage(note)
                state.save(journal.state_path)
                self._notes.clear()
        with buffer.lock:
            if not self.doubtful:
                self._reason = ""
                buffer.resume()

    def _report_again(self) -> None:
        """Copy the lines `read` of doubtful segments into the current one: other processes may not have read them.

        This is done once for each segment, before its file is written anew without such lines. The locks are held.
        """
        new = self.doubtful.keys() - self._reported_again
        tables = [table for table in self._buffer.tables.sealed if Segment(table.first, table.last) in new]
        if reads := self._buffer.known_of(sorted({page for table in tables for page in table.reported})):
            self._buffer.report(reads, mending=True)
        self._reported_again = set(self.doubtful)

    def _restore_home(self) -> Checkpoint:
        """Put the writer's id and the state back if they are gone; return the state. The locks are held."""
        buffer, journal = self._buffer, self._journal
        state = Checkpoint.load(journal.state_path)
        is_ours = state.writer == buffer.writer
        if state.floor < buffer.state.floor or not state.writer:
            if buffer.state.writer:
                self._notes.append("state.json was gone or older than what was known: it was written anew")
            damage = state.damage
            state = deepcopy(buffer.state)
            if state.writer:
                waiting = [table.last for table in buffer.tables.sealed]
                state.forget_attempts({*waiting, *(segment.last for segment in journal.segments()[:-1])})
            state.damage = [*state.damage, *(note for note in damage if note not in state.damage)]
        if not journal.is_there():
            if state.writer:
                # The state comes first: a process that finds the id begins behind the segments that the state includes.
                state.save(journal.state_path)
            journal.rename_writer(buffer.writer_file, replace=False)
            self._notes.append("the writer's id was gone: it was written anew")
        if not is_ours and journal.writer != buffer.writer_file and self._wrong_with_current():
            raise JournalError(f"another journal is in the place of {journal.path}; put this one back, or restart")
        state.writer = state.writer or journal.writer
        return state

    def _current_is_unsynced(self) -> bool:
        current = self._buffer.tables.current.last
        segment = Segment(current, current)
        return segment in self.doubtful or segment in self._journal.find_doubtful()

    def _leave_current(self) -> None:
        """Fence the current segment and go on in the next one. The locks are held."""
        buffer, current = self._buffer, self._buffer.tables.current
        segment = Segment(current.last, current.last)
        if self.cut_at < 0:
            self._fence(segment)
            buffer.catch_up()
            return
        left = self._read_from(0)
        if not left.sealed_as:
            self._fence(segment)
            left = self._read_from(0)
        if not left.sealed_as:
            raise OSError(errno.EIO, "the fence cannot be read")
        rest = self._read_from(self.cut_at).visits
        self.doubtful[segment] = Content(
            current.visits, left.sealed_as, rest=rest, cut_at=self.cut_at, held=None if left.fenced else left.visits
        )
        self.cut_at = -1
        buffer.leave(left.sealed_as)

    def _read_from(self, offset: int) -> Replay:
        """Replay our file of the current segment from a byte on."""
        descriptor = self._buffer.descriptor
        replay = Replay()
        replay.add(os.pread(descriptor, max(0, os.fstat(descriptor).st_size - offset), offset))
        return replay

    def _fence(self, segment: Segment) -> None:
        """Fence the file that this process has open, and also the file at the segment's path if that is another one."""
        journal, descriptor = self._journal, self._buffer.descriptor
        beyond = self._buffer.offset if self.cut_at >= 0 else 0
        with ExitStack() as stack:
            files = [descriptor]
            if not is_file_at(descriptor, journal.path / segment.name) and journal.has(segment):
                files.append(journal.open(segment.last))
                stack.callback(os.close, files[-1])
            journal.fence(segment.last, files, beyond)

    def _known(self, segment: Segment) -> Content | None:
        for table in self._buffer.tables.sealed:
            if (table.first, table.last) == segment.range:
                return Content(table.visits, table.token)
        # Every partition includes this segment; only a shard that comes back with older data can still need it.
        with suppress(FileNotFoundError):
            return self._journal.content_of(segment)
        return None

    def _restore(self, segment: Segment, mine: Content, state: Checkpoint) -> bool:
        """Write what this process knows of a segment and its file lacks; return whether anything was written.

        The flush lock is held.
        """
        journal = self._journal
        there = [s for s in journal.segments() if s.first <= segment.first and segment.last <= s.last]
        if there != [segment]:
            return self._restore_missing(segment, mine, state, merged=bool(there))
        found = journal.content_of(segment)
        sealed = bool(found.token) and not found.fenced
        whole = _together(found, mine, found.token if sealed else mine.token or found.token)
        lacks = _sum(whole).minus(_sum(found))
        if sealed and not lacks and segment not in self._unsynced:
            return False
        if lacks and _may_be_sent(state, segment):
            if not sealed:
                self._write(segment, Content(found.known, whole.token, rest=found.rest, cut_at=found.cut_at))
            self._append_again(segment, lacks)
        else:
            self._write(segment, whole)
        return True

    def _restore_missing(self, segment: Segment, mine: Content, state: Checkpoint, *, merged: bool) -> bool:
        """Do as `_restore`, for a segment that has no file of its own."""
        if merged or (segment.last <= state.floor and state.missing.get(segment.last) != GIVEN_UP):
            # A flush has read the file, and then merged or deleted it.
            lacks = _sum(mine).minus(mine.held) if mine.held is not None else None
            if lacks:
                self._append_again(segment, lacks)
            return bool(lacks)
        if state.missing.get(segment.last) == GIVEN_UP:
            self._append_again(segment, _sum(mine), b" " + WHOLE)
        else:
            self._write(segment, mine)
        return True

    def _write(self, segment: Segment, content: Content) -> None:
        """Write a segment anew and report that to the other processes. The flush lock is held."""
        self._journal.restore(segment, content)
        self._append(encode(REREAD, _range(segment)))

    def _append_again(self, segment: Segment, visits: Tally, what: bytes = b"") -> None:
        """Append visits to the current segment that an older one lacked when it was sent. The flush lock is held."""
        self._append(b"".join([encode(AGAIN, _range(segment) + what), *tally_lines(visits)]))

    def _append(self, data: bytes) -> None:
        """Append to the current segment, durably. The flush lock is held, so no flush can seal the segment."""
        with self._buffer.lock:
            self._buffer.catch_up()
            if os.write(self._buffer.descriptor, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fdatasync(self._buffer.descriptor)
            self._buffer.catch_up()


def _range(segment: Segment) -> bytes:
    return b"%d-%d" % segment.range


def _may_be_sent(state: Checkpoint, segment: Segment) -> bool:
    """Return whether some partition may have received a segment's visits, or a watermark that includes them."""
    attempted = [number for numbers in state.attempted.values() for number in numbers]
    confirmed = [segment_of(token) for token in state.confirmed.values()]
    return segment.last <= max([state.floor, *attempted, *confirmed])


def _sum(content: Content) -> Tally:
    return together((content.known, content.rest))


def _together(found: Content, mine: Content, token: str) -> Content:
    """Return the union of what the file holds (`found`) and what this process knows (`mine`)."""
    if found.cut_at is not None and mine.cut_at is not None:
        # Both noticed the cut. The one that noticed it earlier knows all that was appended behind it.
        first = found if found.cut_at <= mine.cut_at else mine
        return Content(found.known.or_more(mine.known), token, rest=first.rest, cut_at=first.cut_at)
    if found.cut_at is None and mine.cut_at is None:
        return Content(found.known.or_more(mine.known), token)
    # The one that did not notice the cut had not read as far. It took the lines behind the cut for the next ones.
    knowing = found if found.cut_at is not None else mine
    return Content(knowing.known, token, rest=knowing.rest, cut_at=knowing.cut_at)
