"""The journal's directory: which files are in it, and the writer's id.

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

import fcntl
import os
import re
import secrets
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from visit_counter.errors import JournalError, StartupError
from visit_counter.journal.files import file_system_of, is_file_at, sync_directory, write_durably

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NAME = re.compile(r"(\d{10})(?:-(\d{10}))?\.log")

# File systems whose client emulates O_APPEND: appends of two hosts, or even two processes, may overwrite each other.
_UNSAFE_FILE_SYSTEMS = frozenset(("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "afs", "davfs"))


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """One journal file: the segments `first` to `last`. The two are equal unless the file is a merged one."""

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

    @classmethod
    def named(cls, name: str) -> Segment | None:
        """Return the segment whose file has this name, or None for another file."""
        match = _NAME.fullmatch(name)
        return cls(int(match[1]), int(match[2] or match[1])) if match else None


class JournalDirectory:
    """The directory and the names in it. It holds no file open; any process may call every method."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def is_there(self) -> bool:
        """Return whether there is a journal in the directory, that is, a writer's id."""
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
                    # The segment is made before the id. If there is an id and no segment, the segment was removed.
                    if not self.segments():
                        self.make(1)
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
        """Give the writer a new id, durably. Without `replace`, an id that another process has made meanwhile stays."""
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

    @contextmanager
    def flush_lock(self, *, wait: bool) -> Iterator[None]:
        """Hold the flush lock; raises BlockingIOError if `wait` is false and another process holds it."""
        path = self.path / "flush.lock"
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                if not is_file_at(descriptor, path):
                    continue  # the file was removed meanwhile, and other processes lock a new one
                yield
                return
            finally:
                os.close(descriptor)

    def segments(self) -> list[Segment]:
        """Return the segments that have files, in order; one that a merged file contains is left out."""
        found = self._files()
        # A crash between writing a merged file and removing its parts leaves both: the wider one is whole.
        found.sort(key=lambda segment: (segment.first, -segment.last))
        kept: list[Segment] = []
        for segment in found:
            if not kept or segment.first > kept[-1].last:
                kept.append(segment)
        return kept

    def _files(self) -> list[Segment]:
        # A list of names is several times faster than iterdir.
        found = map(Segment.named, os.listdir(self.path))  # noqa: PTH208 - names alone are needed
        return [segment for segment in found if segment is not None]

    def has(self, segment: Segment) -> bool:
        """Return whether a segment file exists."""
        return os.path.exists(self.path / segment.name)  # noqa: PTH110 - of the simulated `os` in tests

    def open(self, number: int) -> int:
        """Open segment `number` for appending and reading; return the file descriptor. Raises FileNotFoundError."""
        return os.open(self.path / Segment(number, number).name, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)

    def begin(self, number: int, *, after: int, locked: bool) -> bool:
        """Make segment `number` if the journal has none from `after` on; return whether it had none. Raises OSError.

        `locked`: this process holds the flush lock.
        """
        if any(segment.last >= after for segment in self.segments()):
            return False
        # The lock is held from the second check until the segment is made. Without the lock, a flush could make and
        # delete the segment in between, and a deleted segment must never be made again.
        with nullcontext() if locked else self.flush_lock(wait=True):
            if any(segment.last >= after for segment in self.segments()):
                return False
            self.make(number)
            return True

    def make(self, number: int) -> None:
        """Make an empty segment file, if it is not there, and put its name on the disk. Raises OSError."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        os.close(os.open(self.path / Segment(number, number).name, flags, 0o600))
        self.sync_directory()

    def forget(self, segment: Segment) -> None:
        """Remove a segment file. If it is a merged one, first remove parts that a crash left: they would come back."""
        if segment.first != segment.last:
            for part in self._files():
                if segment.first <= part.first and part.last <= segment.last and part != segment:
                    (self.path / part.name).unlink(missing_ok=True)
        (self.path / segment.name).unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        """Remove files that a crash left half written. The caller holds the flush lock, so no other process writes."""
        for name in os.listdir(self.path):  # noqa: PTH208 - see `_files`
            if name.endswith(".log.tmp"):
                (self.path / name).unlink(missing_ok=True)

    def remove_covered(self) -> None:
        """Remove the parts of merged files that a killed process left behind."""
        kept = self.segments()
        for name in os.listdir(self.path):  # noqa: PTH208 - see `_files`
            segment = Segment.named(name)
            if segment is not None and segment not in kept:
                (self.path / name).unlink(missing_ok=True)

    def sync_directory(self) -> None:
        """Sync the directory's names: a file is not durable before its name is."""
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

    def size_bytes(self) -> int:
        """Return the bytes that all segment files take."""
        total = 0
        for entry in os.scandir(self.path):
            if _NAME.fullmatch(entry.name):
                try:
                    total += entry.stat().st_size
                except FileNotFoundError:
                    continue  # a flush has deleted it meanwhile
        return total

    def room_bytes(self) -> int:
        """Return how many bytes the disk can still take."""
        room = os.statvfs(self.path)
        return room.f_bavail * room.f_frsize
