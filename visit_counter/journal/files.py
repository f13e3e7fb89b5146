"""Files as the journal needs them: read in whole lines, written durably, compared with their names."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_READ_BYTES = 1 << 20


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
    """Return whether an open file is the one at this path."""
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
    """Return the type of the file system that holds `path`, or "" if the system does not report it."""
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
