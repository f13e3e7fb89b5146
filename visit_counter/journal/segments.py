"""The journal: append-only files that hold the pending visits of one host.

`visit_counter.journal.directory` explains the files and their names, `visit_counter.journal.records` the lines in a
segment.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from visit_counter.journal.directory import JournalDirectory, Segment
from visit_counter.journal.files import whole_lines, write_durably
from visit_counter.journal.records import FENCE, RESTORED, SEAL, Known, Replay, Restored, encode, read_line, tally_lines
from visit_counter.model.visits import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from visit_counter.journal.records import KnownCounts

__all__ = ["Content", "Journal", "SealPlace", "Segment", "new_token"]

_GLANCE_BYTES = 1 << 14
_BEYOND_BYTES = 4096
# Every process inspects the journal once a second, and adds the visits that a file lacks. The flush waits so long.
_SETTLE_SECONDS = 3.0


class SealPlace(NamedTuple):
    """The place of a seal: its file (device and inode), and the byte behind it."""

    file: tuple[int, int]
    end: int

    @classmethod
    def of(cls, descriptor: int, end: int) -> SealPlace:
        """Return the place of a seal in an open file."""
        status = os.fstat(descriptor)
        return cls((status.st_dev, status.st_ino), end)


def new_token(segment: int) -> str:
    """Return a watermark token for a segment that is being sealed."""
    return f"{segment}:{secrets.token_hex(6)}"


@dataclass(slots=True)
class Content:
    """The content of a sealed segment: `known` and `rest` are the two parts that `records.Restored` explains.

    `held`: the visits that the file still had when it was sealed, if a process knows more than these.
    """

    known: Tally
    token: str
    fenced: bool = False
    rest: Tally = field(default_factory=Tally)
    cut_at: int | None = None  # None: the file was not cut, and `rest` is empty
    held: Tally | None = None


class Journal(JournalDirectory):
    """The segments and their content. It holds no file open; any process may call every method.

    `clock` counts seconds, and is the same for all processes of this boot.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(path)
        self._clock = clock
        # Segments whose sync has failed in a flush: a later sync that succeeds proves nothing.
        self.doubtful: set[Segment] = set()

    def read(self, segment: Segment) -> Replay:
        """Replay a whole segment file. Raises OSError."""
        replay = Replay()
        with (self.path / segment.name).open("rb") as file:
            for data in whole_lines(file.fileno()):
                replay.add(data)
        return replay

    def holds_visits(self, segment: Segment) -> bool:
        """Return whether a segment holds visits; reads no more of it than necessary. Raises OSError."""
        with (self.path / segment.name).open("rb") as file:
            for data in whole_lines(file.fileno(), piece_bytes=_GLANCE_BYTES):
                replay = Replay()
                replay.add(data)
                if replay.visits or replay.sealed_as:
                    return bool(replay.visits)
        return False

    def content_of(self, segment: Segment) -> Content:
        """Read a segment file whole. Raises OSError."""
        data = (self.path / segment.name).read_bytes()
        head, tail = Replay(), Replay()
        head.add(data)
        marks = [Restored.of(event) for event in head.events if event.kind == RESTORED]
        if not marks:
            return Content(head.visits, head.sealed_as, head.fenced)
        before, _, behind = data.partition(marks[0].encode())
        known = Replay()
        known.add(before)
        tail.add(behind)
        cut_at = None if marks[0].cut_at < 0 else marks[0].cut_at
        return Content(known.visits, tail.sealed_as, tail.fenced, tail.visits, cut_at)

    def token_of(self, segment: Segment) -> str:
        """Return the token at the end of a sealed segment, without reading the whole of a large one."""
        return self.token_at_end(segment) or self.read(segment).sealed_as

    def token_at_end(self, segment: Segment) -> str:
        """Return the token of the seal in the last lines of a segment; "" if there is none."""
        with (self.path / segment.name).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            replay = Replay()
            replay.add(file.read())
        return replay.sealed_as

    def is_followed(self, segment: Segment) -> bool:
        """Return whether a later segment has any line. If this segment has no seal then, a power loss took the seal."""
        return any(later.first > segment.last and (self.path / later.name).stat().st_size for later in self.segments())

    def is_whole(self, replay: Replay) -> bool:
        """Return whether a segment is not in doubt, and every process had the time to add the visits that it lacks."""
        marks = [Restored.of(event).at for event in replay.events if event.kind == RESTORED]
        return not replay.fenced and all(map(self.is_settled, marks))

    def now(self) -> float:
        """Return the seconds of this boot."""
        return self._clock()

    def is_settled(self, at: float) -> bool:
        """Return whether every process has had the time to act on damage that was found at `at`, see `now`."""
        return not 0 <= self._clock() - at < _SETTLE_SECONDS

    def seal(self, segment: Segment, followed: Callable[[Segment], Replay | None] = lambda _: None) -> Replay:
        """Seal the current segment, sync it, and return its content. Raises OSError.

        `followed` may know the content of a sealed segment; otherwise its file is read.
        """
        # The next segment is made before the seal is written. So a process that reads the seal finds the next segment,
        # and no process makes another one with its number.
        self.make(segment.last + 1)
        descriptor = self.open(segment.last)
        try:
            os.write(descriptor, encode(SEAL, new_token(segment.last).encode("ascii")))
            self._sync(descriptor, segment)
        finally:
            os.close(descriptor)
        replay = followed(segment) or self.read(segment)
        if not replay.sealed_as:
            raise OSError(f"segment {segment.last} could not be sealed")
        return replay

    def is_sealed_at(self, segment: Segment, token: str, place: SealPlace) -> bool:
        """Return whether a segment's file is the one of `place`, and has this seal there. Raises OSError.

        A file only ever grows. So if the seal is at its old place, all bytes before it are the same, too.
        """
        line = encode(SEAL, token.encode("ascii"))
        descriptor = os.open(self.path / segment.name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            is_there = os.pread(descriptor, len(line), place.end - len(line)) == line
            return is_there and SealPlace.of(descriptor, place.end) == place
        finally:
            os.close(descriptor)

    def fence(self, number: int, descriptors: Sequence[int], offset: int) -> None:
        """Append a fence to each of these files of segment `number`, which is in doubt. Raises OSError.

        Every process that follows one of these files goes on in the next segment. The caller holds the flush lock, and
        writes the segment anew. It has read up to `offset`, and the files are made longer than that. Otherwise a
        process that had read as far before the cut could find the file's end where it left it, and notice nothing.
        """
        self.make(number + 1)
        line = encode(SEAL, new_token(number).encode("ascii") + FENCE)
        for descriptor in descriptors:
            if os.write(descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if os.fstat(descriptor).st_size < offset + _BEYOND_BYTES:
                os.ftruncate(descriptor, offset + _BEYOND_BYTES)

    def write_segment(self, segment: Segment, visits: Tally, token: str, known: KnownCounts) -> None:
        """Write a sealed segment file with a line per page, durably; it replaces the file with this name.

        `known`: the counts of its lines `read`, which it keeps for processes that start while a shard is down.
        """
        reads = (read_line(page, Known(losses, at, stored)) for (page, losses, at), stored in known.items())
        self._replace(segment, [*tally_lines(visits), *reads, encode(SEAL, token.encode("ascii"))])

    def restore(self, segment: Segment, content: Content) -> None:
        """Write a segment anew, durably. Raises OSError."""
        mark = Restored(-1 if content.cut_at is None else content.cut_at, self._clock())
        seal = encode(SEAL, content.token.encode("ascii"))
        self._replace(segment, [*tally_lines(content.known), mark.encode(), *tally_lines(content.rest), seal])

    def _replace(self, segment: Segment, lines: list[bytes]) -> None:
        temporary = self.path / f"{segment.name}.tmp"
        try:
            write_durably(temporary, b"".join(lines))
        except OSError:
            temporary.unlink(missing_ok=True)  # it may have taken the last room on the disk
            raise
        temporary.replace(self.path / segment.name)
        self.sync_directory()

    def sync(self, segment: Segment) -> None:
        """Sync a segment's file."""
        descriptor = os.open(self.path / segment.name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._sync(descriptor, segment)
        finally:
            os.close(descriptor)

    def _sync(self, descriptor: int, segment: Segment) -> None:
        try:
            os.fdatasync(descriptor)
        except OSError:
            self.doubtful.add(segment)
            # Another process may run the next flush, and must know this doubt, too.
            with suppress(OSError), (self.path / "doubtful").open("a", encoding="ascii") as file:
                file.write(f"{segment.name}\n")
            raise

    def find_doubtful(self) -> set[Segment]:
        """Return the segments whose sync has failed in a flush of any process, and that were not written anew since."""
        with suppress(FileNotFoundError):
            found = map(Segment.named, (self.path / "doubtful").read_text(encoding="ascii").split())
            return self.doubtful | {segment for segment in found if segment is not None}
        return set(self.doubtful)

    def forget_doubt(self, segment: Segment) -> None:
        """Remove a segment from those in doubt: it was written anew. The caller holds the flush lock."""
        self.doubtful.discard(segment)
        left = self.find_doubtful() - {segment}
        path = self.path / "doubtful"
        if not left:
            path.unlink(missing_ok=True)
        elif path.exists():
            path.write_text("".join(f"{other.name}\n" for other in left), encoding="ascii")
