"""The files of the embedded shards: their names, their password, their locks. Uses the standard library alone.

    data/shards/names              the shards' names, a line each, in the order of VISITS_EMBEDDED_PORTS
    data/shards/password           the password of all embedded servers
    data/shards/users.lock         shared by every process that needs the servers
    data/shards/supervisor.log     the log of supervisors that commands started
    data/shards/redis_7070/        the data and the log of the server of the shard redis_7070, and
        supervisor.lock            locked by the supervisor that runs the server; has the port and its process id

A shard keeps its name, and so its directory and its pages, whatever port its server listens on.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from visit_counter.errors import EmbeddedError
from visit_counter.private_files import make_private_directory, open_private

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

PID_FILE = "valkey.pid"
LOCK_FILE = "supervisor.lock"
_FIRST_NUMBER = 7070
_NAME = re.compile(r"redis_[0-9]{1,5}")
_PASSWORD = re.compile(r"[A-Za-z0-9_-]{32,}")


def shards_dir(data_dir: Path) -> Path:
    """Return the directory of all embedded shards."""
    return data_dir / "shards"


def shard_dir(data_dir: Path, name: str) -> Path:
    """Return the directory of an embedded shard's files."""
    return shards_dir(data_dir) / name


def users_lock(data_dir: Path) -> Path:
    """Return the file that every process locks, shared, for as long as it needs the servers."""
    return shards_dir(data_dir) / "users.lock"


def supervisor_log(data_dir: Path) -> Path:
    """Return the log of supervisors that a command started; the others write to the service's."""
    return shards_dir(data_dir) / "supervisor.log"


def supervisor_lock(data_dir: Path, name: str) -> Path:
    """Return the file that the supervisor of a shard locks."""
    return shard_dir(data_dir, name) / LOCK_FILE


# -- names ---------------------------------------------------------------------------------------------------------


def shard_names(data_dir: Path, ports: Sequence[int]) -> list[str]:
    """Return the names of the embedded shards that listen on these ports, in their order. Writes nothing.

    Without a record (`write_names`) the data is new, or of the version that named a shard and its directory after its
    port. Then a directory named after one of the ports belongs to that port, and the other directories come next.
    """
    recorded = _recorded_names(data_dir)
    there = _directories(data_dir)
    names: list[str | None] = [*recorded[: len(ports)]]
    names += [f"redis_{port}" if f"redis_{port}" in there else None for port in ports[len(names) :]]
    names = [name if name not in names[:number] else None for number, name in enumerate(names)]
    others = (name for name in there if name not in names) if not recorded else iter(())
    fresh = (f"redis_{number}" for number in count(_FIRST_NUMBER))
    free = (name for name in fresh if name not in (*recorded, *there))
    return [name or next(others, None) or next(free) for name in names]


def write_names(data_dir: Path, names: Sequence[str]) -> None:
    """Record the names for good. A record that has more names stays as it is."""
    if len(_recorded_names(data_dir)) < len(names):
        _write_whole(shards_dir(data_dir) / "names", "".join(f"{name}\n" for name in names), replace=True)


def unused_directories(data_dir: Path) -> list[str]:
    """Return the names of shards that have data here and no place among the recorded names."""
    recorded = _recorded_names(data_dir)
    return [name for name in _directories(data_dir) if name not in recorded]


def _recorded_names(data_dir: Path) -> list[str]:
    try:
        names = _read(shards_dir(data_dir) / "names").split()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise EmbeddedError(f"cannot read {error.filename}: {error.strerror}") from None
    if not all(map(_NAME.fullmatch, names)) or len(set(names)) < len(names):
        raise EmbeddedError(f"{shards_dir(data_dir) / 'names'} does not hold the names of the embedded shards")
    return names


def _directories(data_dir: Path) -> list[str]:
    """Return the names of the shards that have a directory, by number."""
    with suppress(OSError):
        found = [path.name for path in shards_dir(data_dir).iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda name: int(name.removeprefix("redis_")))
    return []


# -- password ------------------------------------------------------------------------------------------------------


def password_file(data_dir: Path) -> Path:
    """Return the file that holds the password of all embedded servers."""
    return shards_dir(data_dir) / "password"


def make_password(data_dir: Path, password: str = "") -> None:
    """Keep this password, or a new one, if there is none yet. If two processes do so at once, one of them wins."""
    if not password_file(data_dir).exists():
        _write_whole(password_file(data_dir), password or secrets.token_urlsafe(32), replace=False)


def read_password(path: Path) -> str:
    """Return the password. Raises EmbeddedError."""
    try:
        password = _read(path).strip()
    except OSError as error:
        raise EmbeddedError(f"cannot read the password of the embedded shards, {path}: {error.strerror}") from None
    if not _PASSWORD.fullmatch(password):
        raise EmbeddedError(f"{path} does not hold a password that this service made; remove it and start again")
    return password


# -- locks ---------------------------------------------------------------------------------------------------------


def prepare(data_dir: Path, names: Iterable[str], password: str = "") -> None:
    """Make all files that are to be there before a process uses or runs the shards. Raises EmbeddedError.

    `password`: that of the servers that run, where the files were removed under them.
    """
    names = list(names)
    try:
        make_private_directory(data_dir)
        make_private_directory(shards_dir(data_dir))
        write_names(data_dir, names)
        make_password(data_dir, password)
        for name in names:
            make_private_directory(shard_dir(data_dir, name))
    except OSError as error:
        raise EmbeddedError(f"cannot write to {error.filename}: {error.strerror}; set VISITS_DATA_DIR") from None


def try_lock(descriptor: int, kind: int) -> bool:
    """Take a lock, LOCK_EX or LOCK_SH, if it is free; return whether it was."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def opened(path: Path, flags: int = 0) -> Iterator[int]:
    """Open a file for the time of the block, and make it if need be."""
    descriptor = open_private(path, os.O_RDWR | os.O_CREAT | flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def is_at(descriptor: int, path: Path) -> bool:
    """Tell whether an open file still has its name, or was removed."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def is_supervised(data_dir: Path, name: str) -> bool:
    """Tell whether a supervisor runs the shard now."""
    with opened(supervisor_lock(data_dir, name)) as descriptor:
        return not try_lock(descriptor, fcntl.LOCK_SH)


def write_pid(directory: Path, pid: int) -> None:
    """Note the process of a server, as the server itself does at its start."""
    _write_whole(directory / PID_FILE, f"{pid}\n", replace=True)


def server_pid(directory: Path) -> int:
    """Return the process of the server that a supervisor started in a shard's directory; 0 if none runs."""
    with suppress(OSError, ValueError):
        pid = int(_read(directory / PID_FILE))
        # The file outlives a server that was killed, and its number may be another process by now.
        if Path(f"/proc/{pid}/cwd").samefile(directory):
            return pid
    return 0


# -- reading and writing --------------------------------------------------------------------------------------------


def _read(path: Path) -> str:
    descriptor = open_private(path, os.O_RDONLY)
    with os.fdopen(descriptor, encoding="ascii", errors="replace") as file:
        return file.read(4096)


def _write_whole(path: Path, text: str, *, replace: bool) -> None:
    """Write a file that is whole or not there; without `replace`, one that is there by now stays."""
    made = path.with_name(f"{path.name}.{os.getpid()}")
    made.unlink(missing_ok=True)
    descriptor = open_private(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        os.write(descriptor, text.encode("ascii"))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if replace:
        made.replace(path)
        return
    with suppress(FileExistsError):
        path.hardlink_to(made)
    made.unlink()
