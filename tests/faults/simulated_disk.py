"""A disk for the simulation: real files in memory, and a say in every call that changes them.

`SimulatedOs` stands in for the module `os` in the modules of the journal, `SimulatedPath` for the journal's path.
Each call is a point where the process may die or another one may run; writes may be cut or refused as by a full
disk; and what was not synced may be gone after `lose_power`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import PosixPath
from random import Random
from typing import Any


class Disk:
    """What is durable and what is not. `point(name)` is called at every step of a process."""

    def __init__(self, random: Random, point: Callable[[str], None]) -> None:
        self.random = random
        self.point = point
        self.full = 0.0  # how likely a write is refused or cut
        self.sick = 0.0  # how likely a sync fails
        self._failures: dict[int, int] = {}  # inode -> how many of its syncs failed
        self._met: dict[int, list[int]] = {}  # descriptor -> how many of them its open file was told of
        self._dropped: dict[int, list[tuple[int, int]]] = {}  # inode -> from where to where bytes are not on the disk
        self.open_files: set[int] = set()  # those of the process that runs
        self.pid = 0  # of the process that runs
        self._synced: dict[int, int] = {}  # inode -> bytes on the disk
        self._undo: list[Callable[[], None]] = []  # names changed since the directory was synced
        self._links: list[str] = []  # keeps the inodes of undone names from being used again

    def created(self, path: str) -> None:
        """A new name, not on the disk yet."""
        self._undo.append(lambda: PosixPath(path).unlink(missing_ok=True))

    def changed(self, path: str) -> None:
        """A name is about to point to something else, or to nothing: keep what it points to."""
        if not os.path.exists(path):  # noqa: PTH110 - called often
            self.created(path)
            return
        kept = f"{path}.kept{len(self._links)}"
        os.link(path, kept)
        self._links.append(kept)
        self._undo.append(lambda: os.replace(kept, path))  # noqa: PTH105 - not the simulated one

    def directory_synced(self) -> None:
        """All names are on the disk."""
        self._undo.clear()
        for kept in self._links:
            PosixPath(kept).unlink(missing_ok=True)
        self._links.clear()

    def synced(self, descriptor: int) -> None:
        """A file's bytes are on the disk, unless the disk fails: then none of them is, and no later sync says so.

        As Linux does it: the pages are taken for clean, and each file that was open is told once.
        """
        status = os.fstat(descriptor)
        inode = status.st_ino
        synced = self._synced.get(inode, 0)
        self._synced[inode] = max(synced, status.st_size)
        if self.sick and self.random.random() < self.sick:
            self._failures[inode] = self._failures.get(inode, 0) + 1
            if synced < status.st_size:
                self._dropped.setdefault(inode, []).append((synced, status.st_size))
        if self._met[descriptor][0] < self._failures.get(inode, 0):
            self._met[descriptor][0] = self._failures[inode]
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def opened(self, descriptor: int, like: int | None = None) -> None:
        """A file was opened, or is another descriptor's: what failed before is old news to it."""
        failures = self._failures.get(os.fstat(descriptor).st_ino, 0)
        self._met[descriptor] = [failures] if like is None else self._met[like]

    def emptied(self, descriptor: int) -> None:
        """A file begins anew: what its disk lacked is no longer of it."""
        inode = os.fstat(descriptor).st_ino
        self._dropped.pop(inode, None)
        self._synced.pop(inode, None)

    def _drop_pages(self, directory: str) -> None:
        """Put zeros in the place of what was written and never came to the disk."""
        for name in os.listdir(directory):  # noqa: PTH208 - called often
            path = f"{directory}/{name}"
            status = os.stat(path)  # noqa: PTH116 - as the code under test calls it
            for start, end in self._dropped.pop(status.st_ino, []):
                with open(path, "r+b") as file:  # noqa: PTH123 - called often
                    file.seek(start)
                    file.write(b"\0" * max(0, min(end, status.st_size) - start))

    def all_synced(self, directory: str) -> None:
        """All files of a directory are on the disk."""
        for name in os.listdir(directory):  # noqa: PTH208 - called often
            status = os.stat(f"{directory}/{name}")  # noqa: PTH116 - as the code under test calls it
            self._synced[status.st_ino] = status.st_size

    def lose_power(self, directory: str) -> None:
        """Take back a part of what was not synced: names, newest first, and the tails of files."""
        kept_names = self.random.choice((0, len(self._undo), self.random.randint(0, len(self._undo))))
        while len(self._undo) > kept_names:
            self._undo.pop()()
        self.directory_synced()
        self._drop_pages(directory)
        for name in os.listdir(directory):  # noqa: PTH208 - called often
            path = f"{directory}/{name}"
            status = os.stat(path)  # noqa: PTH116 - as the code under test calls it
            synced = min(self._synced.get(status.st_ino, 0), status.st_size)
            if synced < status.st_size and self.random.random() < 0.8:
                size = self.random.randint(synced, status.st_size)
                os.truncate(path, size)
                if self.random.random() < 0.3:
                    # Some file systems grow a file before its bytes arrive.
                    os.truncate(path, size + self.random.randint(1, 100))
            self._synced[status.st_ino] = os.stat(path).st_size  # noqa: PTH116 - as the code under test calls it


class SimulatedOs:
    """The module `os`, with faults."""

    def __init__(self, disk: Disk) -> None:
        self.__dict__.update({name: value for name, value in vars(os).items() if name not in vars(SimulatedOs)})
        self._disk = disk

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        """Open a file; creating one may fail for want of room."""
        disk = self._disk
        disk.point("open")
        if flags & os.O_CREAT and not os.path.exists(path):  # noqa: PTH110 - called often
            if disk.full and disk.random.random() < disk.full / 4:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            descriptor = os.open(path, flags, mode)
            if not str(path).endswith(".lock"):
                disk.created(str(path))
        else:
            descriptor = os.open(path, flags, mode)
        disk.open_files.add(descriptor)
        disk.opened(descriptor)
        if flags & os.O_TRUNC:
            disk.emptied(descriptor)
        return descriptor

    def getpid(self) -> int:
        """Return the id of the process that runs."""
        return self._disk.pid

    def dup(self, descriptor: int) -> int:
        """Duplicate a descriptor."""
        again = os.dup(descriptor)
        self._disk.open_files.add(again)
        self._disk.opened(again, descriptor)
        return again

    def close(self, descriptor: int) -> None:
        """Close a file."""
        self._disk.open_files.discard(descriptor)
        os.close(descriptor)

    def write(self, descriptor: int, data: Any) -> int:
        """Write; a full disk takes a part or nothing."""
        disk = self._disk
        disk.point("write")
        if disk.full and disk.random.random() < disk.full:
            taken = disk.random.choice((0, disk.random.randrange(len(data))))
            if not taken:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            data = bytes(data[:taken])
        written = os.write(descriptor, data)
        disk.point("written")
        return written

    def lseek(self, descriptor: int, position: int, how: int) -> int:
        """Seek; looking for the end is where another process may just have appended."""
        if how == os.SEEK_END:
            self._disk.point("look")
        return os.lseek(descriptor, position, how)

    def fdatasync(self, descriptor: int) -> None:
        """Sync a file's bytes."""
        self._disk.point("sync")
        self._disk.synced(descriptor)
        self._disk.point("synced")

    def fsync(self, descriptor: int) -> None:
        """Sync a file's bytes, or a directory's names."""
        self._disk.point("sync")
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112 - called often
            self._disk.directory_synced()
        else:
            self._disk.synced(descriptor)
        self._disk.point("synced")

    def link(self, source: Any, target: Any) -> None:
        """Give a file a second name."""
        self._disk.point("link")
        os.link(source, target)
        self._disk.created(str(target))


class SimulatedPath(PosixPath):
    """A path whose renames and removals are points of the simulation; set `disk` before use."""

    disk: Disk

    def replace(self, target: Any) -> Any:
        """Rename."""
        self.disk.point("replace")
        self.disk.changed(str(target))
        result = super().replace(target)
        self.disk.point("replaced")
        return result

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove."""
        self.disk.point("unlink")
        if not self.name.endswith(".tmp") and self.exists():
            self.disk.changed(str(self))
        super().unlink(missing_ok)
        self.disk.point("unlinked")
