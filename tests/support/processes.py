"""What processes take, seen from outside: their CPU time, their memory, and who started whom. Linux's /proc."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.servers import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/<pid>/stat from the state on; [] if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def state(pid: int) -> str:
    """Return the state of a process's first thread: S where it sleeps, R where it runs or could, Z, and so on.

    Nothing where there is no such process.
    """
    return "".join(_stat(pid)[:1])


def runs(pid: int) -> bool:
    """Tell whether a process exists and is no zombie."""
    return state(pid) not in ("", "Z")


def _all() -> dict[int, list[str]]:
    numbers = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    return {pid: fields for pid in numbers if (fields := _stat(pid))}


def tree(pid: int) -> list[int]:
    """Return a process and all that it and its children have started, without those that have ended."""
    children: dict[int, list[int]] = {}
    for child, fields in _all().items():
        if fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(child)
    found = [pid]
    for one in found:  # grows meanwhile
        found += children.get(one, [])
    return found


def session(number: int) -> list[int]:
    """Return the running processes of a session."""
    return [pid for pid, fields in _all().items() if int(fields[3]) == number and fields[0] != "Z"]


def with_argument(text: str) -> list[int]:
    """Return the running processes that have this text in their command line, whoever started them."""
    found = []
    for pid in _all():
        with suppress(OSError):
            if text.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time these processes have used, and those of their children that have ended and been reaped."""
    return sum(int(ticks) for pid in pids for ticks in _stat(pid)[11:15]) * TICK_SECONDS


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Let a process stand still meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: state(pid) == "T", "the process stands still")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def own_cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time these processes have used themselves, without their children; each of them must be there."""
    return sum(int(_stat(pid)[at]) for pid in pids for at in (11, 12)) * TICK_SECONDS


def resident_mib(pid: int) -> float:
    """Return the memory of a process in MiB: every page it has in memory, be it shared with others."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def pss_mb(pid: int) -> float:
    """Return the memory of a process in MB: its own pages, and its share of those that others use too."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no Pss")


def name_of(pid: int) -> str:
    """Return what a process is: the module that Python runs, or the program's name."""
    words = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    # A server may have put its title, with blanks, in the place of its arguments.
    return words[words.index("-m") + 1] if "-m" in words else Path(words[0].partition(" ")[0]).name


def kill(pids: Iterable[int]) -> None:
    """End processes at once."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
