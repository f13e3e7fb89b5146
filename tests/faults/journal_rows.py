"""The rows of the campaign in which the journal's disk fails, or somebody removes or cuts the journal's files."""

from __future__ import annotations

import errno
import http.client
import json
import os
import shutil
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from tests.faults.service import FaultyService
from tests.support.oracle import BrokenError
from tests.support.servers import wait_until
from visit_counter.journal.checkpoint import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Row = Callable[[Path, int, int, Callable[[int], None]], str]

# Long enough that there is something in the current segment, and that a fault does not meet a flush each time.
_FLUSH_SECONDS = "2"
# After so long every worker has looked at the current segment, also on a busy machine.
_LOOKED_SECONDS = 2.5


def _health(service: FaultyService) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", service.server.port, timeout=60)
    try:
        connection.request("GET", "/health")
        return str(json.loads(connection.getresponse().read())["api_status"])
    except (OSError, ValueError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def _wait_until_accepted(service: FaultyService) -> None:
    """Return once no worker refuses visits: several connections, since each worker tells of itself."""
    wait_until(
        lambda: all(_health(service) in ("healthy", "degraded") for _ in range(8)),
        f"visits are accepted again; the log: {service.server.log[-2000:]}",
        30,
    )


def _current(service: FaultyService) -> Path:
    return max((service.dir / "data" / "journal").glob("??????????.log"))


def _wait_for_content(service: FaultyService, size: int) -> Path:
    found: list[Path] = []

    def is_there() -> bool:
        with suppress(OSError, ValueError):
            path = _current(service)
            if path.stat().st_size > size:
                found.append(path)
        return bool(found)

    wait_until(is_there, "the current segment holds something", 30)
    return found[-1]


def _row(
    told: str, harm: Callable[[FaultyService, int], None], worker_class: str | None, fsync: str, *, heals: bool = True
) -> Row:
    """Make a row: do it so many times to a service under load, and let it become healthy again each time."""

    def row(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
        options = ["-k", worker_class] if worker_class else []
        with FaultyService(
            directory,
            *options,
            seed=seed,
            VISITS_FLUSH_SECONDS=_FLUSH_SECONDS,
            VISITS_JOURNAL_FSYNC=fsync,
        ) as service:
            for trial in range(trials):
                _wait_for_content(service, 600)
                harm(service, trial)
                if heals:
                    _wait_until_accepted(service)
                progress(trial + 1)
                if trial % 10 == 9 or trial == trials - 1:
                    service.compare()
            return f"{service.visitors.answers} answers, {service.oracle.refusals} visits refused"

    row.__doc__ = f"{told}; fsync {fsync}{', gthread' if worker_class else ''}"
    return row


def _fail(kind: str, codes: tuple[int, ...]) -> Callable[[FaultyService, int], None]:
    """Let a system call of the journal fail for a while; in every second trial with no visitor who comes to try."""

    def harm(service: FaultyService, trial: int) -> None:
        fault = service.faults / f"fail.{kind}"
        before = service.oracle.refusals
        fault.write_text(str(service.random.choice(codes)), encoding="ascii")
        wait_until(lambda: service.oracle.refusals > before, "visits are refused", 30)
        wait_until(lambda: _health(service) == "unhealthy", "it is told", 30)
        if trial % 2:
            with service.at_rest():
                fault.unlink()
                _wait_until_accepted(service)
        else:
            time.sleep(service.random.random())
            fault.unlink()

    return harm


def _remove_segment(service: FaultyService, trial: int) -> None:
    del trial
    # One that holds a visit: who has appended that knows the segment, and nobody else can write it anew.
    path = _wait_for_content(service, 200)
    inode = path.stat().st_ino
    path.unlink()
    _wait_until_written(path, inode)


def _remove_directory(service: FaultyService, trial: int) -> None:
    data = service.dir / "data"
    gone = service.dir / f"gone{trial}"
    path = _wait_for_content(service, 200)
    inode = path.stat().st_ino
    # In one step: a file that a worker makes meanwhile would keep the directory.
    data.rename(gone)
    _wait_until_written(path, inode)
    shutil.rmtree(gone)


def _cut_segment(service: FaultyService, trial: int) -> None:
    del trial
    path = _wait_for_content(service, 1500)
    inode = path.stat().st_ino
    # What one worker acknowledged a moment ago, and the other has not read yet, shows there once it is written anew.
    service.visitors.may_see_less = True
    # Both workers have surely read this: who has not may append without seeing that anything is gone.
    os.truncate(path, service.random.choice((0, service.random.randrange(300))))
    _wait_until_written(path, inode)
    _wait_until_accepted(service)
    # A worker that knows more than the one that wrote the segment anew adds it when it looks: once a second.
    time.sleep(_LOOKED_SECONDS)
    _wait_until_accepted(service)
    with service.at_rest():
        service.visitors.may_see_less = False


def _wait_until_written(path: Path, inode: int) -> None:
    """Wait until a segment that was harmed is there anew, or every partition includes it.

    A flush may have sealed and sent it in the moment before: then nobody needs it.
    """
    number = int(path.stem.partition("-")[0].lstrip("0") or 0)

    def is_written() -> bool:
        with suppress(FileNotFoundError):
            return path.stat().st_ino != inode
        return Checkpoint.load(path.parent / "state.json").floor >= number

    wait_until(is_written, "the segment is written anew", 30)


def _check_told(row: Row, text: str) -> Row:
    """Make a row that also looks whether the damage is told."""

    def checked(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
        detail = row(directory, trials, seed, progress)
        state = json.loads((directory / "data" / "journal" / "state.json").read_text(encoding="utf-8"))
        if not any(text in note for note in state["damage"]):
            raise BrokenError(f"the damage is not told: {state['damage']}")
        return detail

    checked.__doc__ = row.__doc__
    return checked


_SYNC = _fail("fdatasync", (errno.EIO, errno.ENOSPC, errno.EDQUOT))
_WRITE = _fail("write", (errno.EROFS, errno.EPERM, errno.EDQUOT, errno.EIO))
GTHREAD = "gthread"

sync_fails_everysec = _check_told(_row("The journal cannot be synced", _SYNC, None, "everysec"), "synced")
sync_fails_always = _check_told(_row("The journal cannot be synced", _SYNC, None, "always"), "synced")
sync_fails_gthread = _check_told(_row("The journal cannot be synced", _SYNC, GTHREAD, "always"), "synced")
write_fails = _row("The journal is read-only, immutable or over its quota", _WRITE, None, "everysec")
write_fails_gthread = _row("The journal is read-only, immutable or over its quota", _WRITE, GTHREAD, "everysec")
segment_removed = _check_told(_row("The current segment is removed", _remove_segment, None, "everysec"), "gone")
directory_removed = _check_told(_row("The data directory is removed", _remove_directory, None, "always"), "gone")
directory_removed_gthread = _check_told(
    _row("The data directory is removed", _remove_directory, GTHREAD, "everysec"), "gone"
)
segment_cut = _check_told(_row("The current segment is cut", _cut_segment, None, "everysec"), "was cut")
segment_cut_gthread = _check_told(_row("The current segment is cut", _cut_segment, GTHREAD, "always"), "was cut")
