"""The journal: append-only files that hold the pending visits of one host.

One directory, shared by all processes of the host::

    journal/writer             the writer's random id, made once
    journal/0000000007.log     a sealed segment
    journal/0000000008.log     the current segment: the first without a seal
    journal/0000000003-0000000006.log   four sealed segments merged into one
    journal/state.json         what the flush has confirmed (`visit_counter.journal.checkpoint`)
    journal/doubtful           segments whose sync has failed in a flush, until they are written anew
    journal/*.lock             locks; they hold nothing

What is in a segment is explained in `visit_counter.journal.records`.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import re
import secrets
import time
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from visit_counter.errors import JournalError, StartupError
from visit_counter.journal.records import FENCE, RESTORED, SEAL, Known, Replay, Restored, encode, read_line, tally_lines
from visit_counter.model.visits import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from visit_counter.journal.records import KnownCounts

_NAME = re.compile(r"(\d{10})(?:-(\d{10}))?\.log")
_READ_BYTES = 4 << 20
_GLANCE_BYTES = 1 << 14
_BEYOND_BYTES = 4096
# Every process looks at the journal once a second, and then says what it knows.
_SETTLE_SECONDS = 3.0

# File systems whose O_APPEND is emulated by the client: two hosts' (or even two processes') appends may overwrite.
_UNSAFE_FILE_SYSTEMS = frozenset(("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "afs", "davfs"))


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """One journal file: the segments `first` to `last` (the same but for merged ones)."""

    first: int
    last: int

    @property
    def range(self) -> tuple[int, int]:
        """The first and the last number."""
        return self.first, self.last

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{self.last:010}.log" if self.first == self.last else f"{self.first:010}-{self.last:010}.log"


def new_token(segment: int) -> str:
    """Return a watermark token for a segment that is being sealed."""
    return f"{segment}:{secrets.token_hex(6)}"


@dataclass(slots=True)
class Content:
    """What a sealed segment holds: `known` and `rest` are the two parts of `records.Restored`.

    `held`: what was left in the file when it was sealed, where a process knows more than that.
    """

    known: Tally
    token: str
    fenced: bool = False
    rest: Tally = field(default_factory=Tally)
    cut_at: int | None = None  # None: the file was not cut, and `rest` is empty
    held: Tally | None = None


class Journal:
    """The directory and its files. Holds no file open; every method may be called from any process.

    `clock` counts seconds, the same ones for all processes of this boot.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._clock = clock
        # Segments whose sync has failed in a flush: what a later sync says of them proves nothing.
        self.doubtful: set[Segment] = set()

    def is_there(self) -> bool:
        """Tell whether there is a journal, and not an empty place for one."""
        return os.path.exists(self.path / "writer")  # noqa: PTH110 - of the simulated `os` in tests

    def prepare(self, *, begin: bool = True) -> None:
        """Make the directory and the writer's id if they are not there; raise StartupError if that cannot be.

        Without `begin` it raises JournalError instead of making a new journal.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            kind = file_system_of(self.path)
            if kind in _UNSAFE_FILE_SYSTEMS:
                raise StartupError(
                    f"the journal directory {self.path} is on {kind}, which does not keep the appends of several "
                    "processes whole; put VISITS_DATA_DIR on a local disk"
                )
            if not self.is_there():
                if not begin:
                    raise JournalError(f"{self.path} is gone")
                with self.flush_lock(wait=True):
                    # First of all: a journal with a writer and no current segment has lost it.
                    if not self.segments():
                        self._make(1)
                    self.rename_writer(secrets.token_hex(8), replace=False)
        except OSError as error:
            raise StartupError(f"the journal directory {self.path} cannot be used: {error.strerror}") from None

    @property
    def state_path(self) -> Path:
        """Where `visit_counter.journal.checkpoint` is kept."""
        return self.path / "state.json"

    def state_version(self) -> tuple[int, int]:
        """Return what changes whenever the state is saved; (0, 0) while there is none."""
        try:
            status = self.state_path.stat()
        except FileNotFoundError:
            return 0, 0
        return status.st_ino, status.st_mtime_ns

    @property
    def writer(self) -> str:
        """The writer's id; raises JournalError when it cannot be read."""
        try:
            return (self.path / "writer").read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise JournalError(f"the writer's id cannot be read: {error}") from None

    def rename_writer(self, writer: str, *, replace: bool = True) -> None:
        """Give the writer a new id, durably. Without `replace`, an id made meanwhile by another process stays."""
        temporary = self.path / f"writer.{os.getpid()}.tmp"
        write_durably(temporary, f"{writer}\n".encode("ascii"))
        if replace:
            temporary.replace(self.path / "writer")
        else:
            try:
                os.link(temporary, self.path / "writer")
            except FileExistsError:
                pass
            finally:
                temporary.unlink()
        self.sync_directory()

    def segments(self) -> list[Segment]:
        """Return the segments there are, in order; one that a merged file contains is left out."""
        found = self._files()
        # A crash between writing a merged file and removing its parts leaves both: the wider one is whole.
        found.sort(key=lambda segment: (segment.first, -segment.last))
        kept: list[Segment] = []
        for segment in found:
            if not kept or segment.first > kept[-1].last:
                kept.append(segment)
        return kept

    def _files(self) -> list[Segment]:
        found = []
        for name in os.listdir(self.path):  # noqa: PTH208 - a list of names, several times faster than iterdir
            if match := _NAME.fullmatch(name):
                last = int(match[2] or match[1])
                found.append(Segment(int(match[1]), last))
        return found

    def remove_leftovers(self) -> None:
        """Remove files that a crash left half written. The caller holds the flush lock: nobody else writes them."""
        for name in os.listdir(self.path):  # noqa: PTH208 - see above
            if name.endswith(".log.tmp"):
                (self.path / name).unlink(missing_ok=True)

    def open(self, number: int) -> int:
        """Open segment `number` for appending and reading; return the file descriptor. Raises FileNotFoundError."""
        return os.open(self.path / Segment(number, number).name, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)

    def begin(self, number: int, *, after: int, locked: bool) -> bool:
        """Make segment `number` if the journal has none from `after` on; tell whether it had none. Raises OSError.

        `locked`: this process holds the flush lock.
        """
        if any(segment.last >= after for segment in self.segments()):
            return False
        # No flush between look and making: it might forget the segment, and a forgotten one must not return.
        with nullcontext() if locked else self.flush_lock(wait=True):
            if any(segment.last >= after for segment in self.segments()):
                return False
            self._make(number)
            return True

    def _make(self, number: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        os.close(os.open(self.path / Segment(number, number).name, flags, 0o600))
        self.sync_directory()

    @contextmanager
    def flush_lock(self, *, wait: bool) -> Iterator[None]:
        """Hold the lock of the one who flushes; raises BlockingIOError if `wait` is false and another one does."""
        path = self.path / "flush.lock"
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                if not is_file_at(descriptor, path):
                    continue  # it was removed meanwhile, and others lock another file
                yield
                return
            finally:
                os.close(descriptor)

    def is_followed(self, segment: Segment) -> bool:
        """Tell whether a later segment holds anything. If this one has no seal, a power loss took it."""
        return any(later.first > segment.last and (self.path / later.name).stat().st_size for later in self.segments())

    def has(self, segment: Segment) -> bool:
        """Tell whether a segment file is there."""
        return os.path.exists(self.path / segment.name)  # noqa: PTH110 - of the simulated `os` in tests

    def read(self, segment: Segment) -> Replay:
        """Replay a whole segment file. Raises OSError."""
        replay = Replay()
        with (self.path / segment.name).open("rb") as file:
            for data in whole_lines(file.fileno()):
                replay.add(data)
        return replay

    def holds_visits(self, segment: Segment) -> bool:
        """Tell whether anything counts in a segment, having read no more of it than that takes. Raises OSError."""
        with (self.path / segment.name).open("rb") as file:
            for data in whole_lines(file.fileno(), piece_bytes=_GLANCE_BYTES):
                replay = Replay()
                replay.add(data)
                if replay.visits or replay.sealed_as:
                    return bool(replay.visits)
        return False

    def seal(self, segment: Segment) -> Replay:
        """Seal the current segment, put it on the disk, and return all that is in it. Raises OSError."""
        # The next segment comes first: whoever meets the seal finds it, and its number is never given out again.
        self._make(segment.last + 1)
        descriptor = self.open(segment.last)
        try:
            os.write(descriptor, encode(SEAL, new_token(segment.last).encode("ascii")))
            self._sync(descriptor, segment)
        finally:
            os.close(descriptor)
        replay = self.read(segment)
        if not replay.sealed_as:
            raise OSError(f"segment {segment.last} could not be sealed")
        return replay

    def fence(self, number: int, descriptors: Sequence[int], offset: int) -> None:
        """Seal segment `number`, that is in doubt, in each of these files. Raises OSError.

        Whoever follows one of them goes on in the next segment. The caller holds the flush lock, and writes the
        segment anew. He has read up to `offset`: the files become longer than that, so that nobody who had read as far
        before a file was cut finds its end where he left it.
        """
        self._make(number + 1)
        line = encode(SEAL, new_token(number).encode("ascii") + FENCE)
        for descriptor in descriptors:
            if os.write(descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if os.fstat(descriptor).st_size < offset + _BEYOND_BYTES:
                os.ftruncate(descriptor, offset + _BEYOND_BYTES)

    def token_of(self, segment: Segment) -> str:
        """Return the token a sealed segment ends with, without reading the whole of a large one."""
        with (self.path / segment.name).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            replay = Replay()
            replay.add(file.read())
        return replay.sealed_as or self.read(segment).sealed_as

    def write_segment(self, segment: Segment, visits: Tally, token: str, known: KnownCounts) -> None:
        """Write a sealed segment file with a line per page, durably, in the place of what it sums up.

        `known`: what was read of pages; it stays for processes that start while a shard is down.
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
            temporary.unlink(missing_ok=True)  # it may have taken the last room there was
            raise
        temporary.replace(self.path / segment.name)
        self.sync_directory()

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

    def now(self) -> float:
        """Return the seconds of this boot."""
        return self._clock()

    def is_settled(self, at: float) -> bool:
        """Tell whether every process has had the time to say what it knows of what was found at `at`, see `now`."""
        return not 0 <= self._clock() - at < _SETTLE_SECONDS

    def is_whole(self, replay: Replay) -> bool:
        """Tell whether a segment is not in doubt, and nobody has still to say what it lacks."""
        marks = [Restored.of(event).at for event in replay.events if event.kind == RESTORED]
        return not replay.fenced and all(map(self.is_settled, marks))

    def forget(self, segment: Segment) -> None:
        """Remove a segment file; of a merged one first the parts that a crash left, or they would come back."""
        if segment.first != segment.last:
            for part in self._files():
                if segment.first <= part.first and part.last <= segment.last and part != segment:
                    (self.path / part.name).unlink(missing_ok=True)
        (self.path / segment.name).unlink(missing_ok=True)

    def sync(self, segment: Segment) -> None:
        """Put a segment's bytes on the disk."""
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
            # The next flush may be another process's.
            with suppress(OSError), (self.path / "doubtful").open("a", encoding="ascii") as file:
                file.write(f"{segment.name}\n")
            raise

    def find_doubtful(self) -> set[Segment]:
        """Return the segments whose sync has failed in a flush of any process, and that were not written anew since."""
        with suppress(FileNotFoundError):
            names = map(_NAME.fullmatch, (self.path / "doubtful").read_text(encoding="ascii").split())
            return self.doubtful | {Segment(int(name[1]), int(name[2] or name[1])) for name in names if name}
        return set(self.doubtful)

    def forget_doubt(self, segment: Segment) -> None:
        """Take a segment off those in doubt: it was written anew. The caller holds the flush lock."""
        self.doubtful.discard(segment)
        left = self.find_doubtful() - {segment}
        path = self.path / "doubtful"
        if not left:
            path.unlink(missing_ok=True)
        elif path.exists():
            path.write_text("".join(f"{other.name}\n" for other in left), encoding="ascii")

    def sync_directory(self) -> None:
        """Put the directory's names on the disk: a file is not durable before its name is."""
        sync_directory(self.path)

    def size_of(self, segment: Segment) -> int:
        """Return the bytes of a segment file; 0 if it is gone."""
        try:
            return (self.path / segment.name).stat().st_size
        except FileNotFoundError:
            return 0

    def written_at(self, segment: Segment, otherwise: float) -> float:
        """Return when a segment was last written to, in seconds since the epoch; `otherwise` if it is gone."""
        try:
            return (self.path / segment.name).stat().st_mtime
        except FileNotFoundError:
            return otherwise

    def remove_covered(self) -> None:
        """Remove the parts of merged files that a killed process left behind."""
        kept = self.segments()
        for name in os.listdir(self.path):  # noqa: PTH208 - as above
            match = _NAME.fullmatch(name)
            if match and Segment(int(match[1]), int(match[2] or match[1])) not in kept:
                (self.path / name).unlink(missing_ok=True)

    def room_bytes(self) -> int:
        """Return how much the disk can still take."""
        room = os.statvfs(self.path)
        return room.f_bavail * room.f_frsize

    def size_bytes(self) -> int:
        """Return the bytes that all segment files take."""
        total = 0
        for entry in os.scandir(self.path):
            if _NAME.fullmatch(entry.name):
                try:
                    total += entry.stat().st_size
                except FileNotFoundError:
                    continue  # forgotten meanwhile
        return total


def whole_lines(
    descriptor: int, start: int = 0, end: float = math.inf, piece_bytes: int = _READ_BYTES
) -> Iterator[bytes]:
    """Give a file's bytes from `start` to the last newline before `end`, in pieces of whole lines. Raises OSError."""
    rest = b""
    while start < end and (piece := os.pread(descriptor, int(min(piece_bytes, end - start)), start)):
        start += len(piece)
        whole = piece.rfind(b"\n") + 1
        if whole:
            yield rest + piece[:whole]
            rest = piece[whole:]
        else:
            rest += piece


def is_file_at(descriptor: int, path: Path) -> bool:
    """Tell whether an open file is the one that has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))  # noqa: PTH116 - of the simulated `os` in tests
    except (FileNotFoundError, NotADirectoryError):
        return False


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file and put its bytes on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Put a directory's names on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_system_of(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """Return the type of the file system that holds `path`, or "" where the system does not tell."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    target = path.resolve()
    best, kind = -1, ""
    for line in lines:
        _, mounted, found, *_ = line.split(" ")
        # The kernel writes blanks in mount points as octal escapes.
        mounted = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), mounted)
        if target.is_relative_to(mounted) and len(mounted) >= best:
            best, kind = len(mounted), found
    return kind
