"""Files that are ours alone: how they are opened, and whether a directory is safe to keep them in.

A user who may write to the data directory can put a link in the place of a file, and have the service write somewhere
else. So every file is opened without following a link, and the start looks at what is there already.
"""

from __future__ import annotations

import os
import pwd
import stat
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING

from visit_counter.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def open_private(path: Path, flags: int) -> int:
    """Open a file of ours; a new one is readable by us alone. Raises OSError, also where the path is a link."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def make_private_directory(path: Path) -> None:
    """Make a directory that only we can enter, if it is not there. Raises OSError."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def check_data_dir(data_dir: Path) -> list[str]:
    """Make the data directory if need be; return warnings. Raises StartupError where it cannot be or is not safe."""
    try:
        make_private_directory(data_dir)
        warnings = check_private(data_dir, "VISITS_DATA_DIR")
        with tempfile.TemporaryFile(dir=data_dir):
            pass
    except OSError as error:
        raise StartupError(f"cannot write to VISITS_DATA_DIR {data_dir}: {error.strerror}") from None
    return warnings


def check_private(directory: Path, name: str) -> list[str]:
    """Return warnings where it, or what is in it, was open to others and has been closed; `name` says what it is.

    Raises StartupError if it is another user's, if others could exchange it, or if there are links in it or another
    user's files, which somebody else must have put there. Root is trusted: it could do anything anyway.
    """
    found = directory.lstat()
    if stat.S_ISLNK(found.st_mode):
        _refuse_foreign(found, f"{name} {directory} is a link, which", "remove it, or choose another directory")
        directory = directory.resolve()
        found = directory.lstat()
    _refuse_foreign(found, f"{name} {directory}", "run as that user, or choose another directory")
    _refuse_open_parents(directory, name)
    warnings = _close(directory, found, name)
    closed = []
    for entry in _entries(directory):
        with suppress(FileNotFoundError):  # of a service that runs here already
            _check_entry(entry, name)
            # A directory is closed before the walk goes into it: from then on nobody else puts anything there.
            if _close_entry(entry, name):
                closed.append(entry.path)
    if closed:
        more = f" and {len(closed) - 1} more" if len(closed) > 1 else ""
        warnings.append(f"{closed[0]}{more} in {name} could be written to by other users; they cannot any more")
    return warnings


def _close(directory: Path, found: os.stat_result, name: str) -> list[str]:
    """Take the right to write from other users."""
    if found.st_uid == os.geteuid() and found.st_mode & _OTHERS_WRITE:
        directory.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS_WRITE)
        return [f"{name} {directory} could be written to by other users; it cannot any more"]
    if found.st_mode & stat.S_IWOTH:
        raise StartupError(f"{name} {directory} can be written to by every user; chmod o-w {directory}")
    return []


def _close_entry(entry: os.DirEntry[str], name: str) -> bool:
    """Take a file or directory in the data directory from other users if they may write to it; tell whether they did.

    A directory becomes what it is when the service makes it: for its owner alone.
    """
    found = entry.stat()  # of the directory that a link of ours leads to
    if not found.st_mode & _OTHERS_WRITE or not (stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)):
        return False
    if found.st_uid != os.geteuid():
        raise StartupError(f"{entry.path} in {name} can be written to by other users; chmod go-w {entry.path}")
    mode = 0o700 if stat.S_ISDIR(found.st_mode) else stat.S_IMODE(found.st_mode) & ~_OTHERS_WRITE
    os.chmod(entry.path, mode)  # noqa: PTH101 - the name that was found
    return True


def _check_entry(entry: os.DirEntry[str], name: str) -> None:
    _refuse_foreign(entry.stat(follow_symlinks=False), f"{entry.path} in {name}", "change its owner, or remove it")
    # A directory may be kept on another disk by a link of our own.
    if entry.is_symlink() and not entry.is_dir():
        raise StartupError(f"{entry.path} in {name} is a link, and no file of ours may be one; remove it")


def _refuse_foreign(found: os.stat_result, what: str, advice: str) -> None:
    if found.st_uid not in (os.geteuid(), 0):
        raise StartupError(f"{what} belongs to {_user(found.st_uid)}, but this is {_user(os.geteuid())}; {advice}")


def _refuse_open_parents(directory: Path, name: str) -> None:
    for parent in directory.resolve().parents:
        mode = parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise StartupError(
                f"{name} {directory} is in {parent}, where every user can put something else in its place; "
                f"chmod o-w {parent}, or choose another directory"
            )


def _entries(directory: Path) -> Iterator[os.DirEntry[str]]:
    """Walk through everything in a directory, without following links."""
    with os.scandir(directory) as entries:
        for entry in entries:
            yield entry
            if entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                yield from _entries(directory / entry.name)


def _user(number: int) -> str:
    try:
        return f"the user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"the user {number}"
