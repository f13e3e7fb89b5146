"""The rows of the campaign that have a service under load: each does a fault so many times, and compares."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING

from tests.faults.service import FaultyService
from tests.support import processes
from tests.support.oracle import BrokenError
from tests.support.servers import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STEPS = ("append", "replay", "seal", "send", "reply", "confirm", "forget")
# How often the counts are compared on the way: it waits for everything to be flushed.
_COMPARE_EVERY = 25


def repeat(service: FaultyService, trials: int, progress: Callable[[int], None], fault: Callable[[int], None]) -> None:
    """Do a fault so many times, and compare now and then."""
    for trial in range(trials):
        fault(trial)
        progress(trial + 1)
        if trial % _COMPARE_EVERY == _COMPARE_EVERY - 1 or trial == trials - 1:
            service.compare()


def kill_worker(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """Kill -9 of a random worker under load."""
    with FaultyService(directory, seed=seed) as service:

        def fault(_: int) -> None:
            service.wait_for_workers()
            time.sleep(service.random.random() * 0.15)
            # One may have just ended by itself: then the others.
            if pids := service.worker_pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(service.random.choice(pids), signal.SIGKILL)

        repeat(service, trials, progress, fault)
        return f"{service.visitors.answers} answers"


def kill_at_step(step: str) -> Callable[..., str]:
    """Make the row of one named step."""

    def row(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
        with FaultyService(directory, seed=seed, VISITS_RETAIN_SEGMENTS="1") as service:

            def fault(_: int) -> None:
                service.arm("kill", step)
                pid = service.reached("kill", step)
                wait_until(lambda: not processes.runs(pid), "the process is gone")
                service.wait_for_workers()

            repeat(service, trials, progress, fault)
            return f"{service.visitors.answers} answers"

    row.__doc__ = f"kill -9 at the step `{step}`"
    return row


def kill_master(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """Kill -9 of the master, restart over its orphaned workers."""
    with FaultyService(directory, seed=seed) as service:

        def fault(_: int) -> None:
            time.sleep(service.random.random() * 0.3)
            orphans = service.worker_pids()
            service.server.stop(signal.SIGKILL)
            service.server.wait()
            # The port is theirs until they have noticed.
            wait_until(lambda: not any(processes.runs(pid) for pid in orphans), "the orphans end", 60)
            service.server.start()

        repeat(service, trials, progress, fault)
        return f"{service.visitors.answers} answers"


def kill_shard(fsync: str) -> Callable[..., str]:
    """Make the row of one `appendfsync`."""

    def row(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
        with FaultyService(directory, seed=seed, fsync=fsync) as service:

            def fault(_: int) -> None:
                service.arm("tell", service.random.choice(("send", "reply", "confirm")))
                step = next(service.faults.iterdir()).suffix[1:] if any(service.faults.iterdir()) else "send"
                wait_until(lambda: not any(service.faults.iterdir()), f"a flush reaches {step}")
                time.sleep(service.random.random() * 0.005)
                shard = service.random.choice(service.shards)
                shard.kill()
                time.sleep(service.random.random() * 0.2)
                shard.start()

            repeat(service, trials, progress, fault)
            return f"{service.visitors.answers} answers"

    row.__doc__ = f"kill -9 of a shard during a flush, appendfsync {fsync}"
    return row


def freeze_worker(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """SIGSTOP of the worker that flushes, in the middle; then SIGCONT or SIGKILL."""
    with FaultyService(directory, seed=seed, workers=3) as service:

        def fault(trial: int) -> None:
            step = service.random.choice(("seal", "send", "reply", "confirm"))
            service.arm("stop", step)
            pid = service.reached("stop", step)
            # The others go on answering; what they accept stays pending, because the lock is held.
            before = service.visitors.answers
            # Not for ever: each visitor may happen to be connected with the frozen one.
            with contextlib.suppress(AssertionError):
                wait_until(lambda: service.visitors.answers > before + 20, "others answer", 2)
            os.kill(pid, signal.SIGKILL if trial % 2 else signal.SIGCONT)
            service.wait_for_workers()

        repeat(service, trials, progress, fault)
        return f"{service.visitors.answers} answers"


def freeze_shard(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """SIGSTOP of a shard for 0.05 to 1 s."""
    with FaultyService(directory, seed=seed) as service:

        def fault(_: int) -> None:
            shard = service.random.choice(service.shards)
            shard.freeze()
            time.sleep(service.random.uniform(0.05, 1.0))
            shard.thaw()
            time.sleep(service.random.random() * 0.2)

        repeat(service, trials, progress, fault)
        return f"{service.visitors.answers} answers"


def roll_back(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """A shard comes back without the last k bytes of its append-only file."""
    most = 0
    with FaultyService(directory, seed=seed) as service:

        def fault(_: int) -> None:
            nonlocal most
            shard = service.random.choice(service.shards)
            # Not more than was written since the oldest retained segment.
            time.sleep(service.random.random() * 0.3)
            shard.kill()
            [file] = shard.dir.glob("appendonlydir/*.incr.aof")
            cut = min(service.random.randint(1, 2000), file.stat().st_size)
            os.truncate(file, file.stat().st_size - cut)
            most = max(most, cut)
            shard.start()
            time.sleep(0.3)

        repeat(service, trials, progress, fault)
        return f"up to {most} bytes, {service.visitors.answers} answers"


def full_disk(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """The disk of the journal is full: a small tmpfs (root only)."""
    data = directory / "data"
    data.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(data)], check=True)  # noqa: S607 - wherever the system has it
    refused = 0
    try:
        with FaultyService(directory, seed=seed) as service:

            def fault(_: int) -> None:
                nonlocal refused
                filler = data / "filler"
                with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                    while True:
                        file.write(b"x" * service.random.choice((1000, 100_000)))
                before = service.oracle.refusals
                with contextlib.suppress(AssertionError):
                    wait_until(lambda: service.oracle.refusals > before, "a visit is refused", 3)
                refused += service.oracle.refusals - before
                filler.unlink()
                time.sleep(0.1)

            repeat(service, trials, progress, fault)
            if not refused:
                raise BrokenError("no visit was refused: the disk was never full")
            return f"{refused} visits refused, {service.visitors.answers} answers"
    finally:
        subprocess.run(["umount", "-l", str(data)], check=True)  # noqa: S607 - wherever the system has it


_CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
static long offset(void) {
  long seconds = 0; FILE *file = fopen(getenv("CLOCK_FILE"), "r");
  if (file) { if (fscanf(file, "%ld", &seconds) != 1) seconds = 0; fclose(file); }
  return seconds;
}
int clock_gettime(clockid_t id, struct timespec *now) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  int result = real(id, now);
  if (id == CLOCK_REALTIME) now->tv_sec += offset();
  return result;
}
time_t time(time_t *out) {
  struct timespec now; clock_gettime(CLOCK_REALTIME, &now);
  if (out) *out = now.tv_sec;
  return now.tv_sec;
}
"""


def set_clock(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """The wall clock of the service is set by an hour or a day, to and fro (needs a C compiler)."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "clock.c").write_text(_CLOCK, encoding="ascii")
    library, file = directory / "clock.so", directory / "clock"
    compiler = shutil.which("cc")
    assert compiler, "no C compiler"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, directory / "clock.c", "-ldl"], check=True)
    file.write_text("0", encoding="ascii")
    offset = 0
    with FaultyService(directory, seed=seed, LD_PRELOAD=str(library), CLOCK_FILE=str(file)) as service:

        def fault(trial: int) -> None:
            nonlocal offset
            offset += (3600, -3600, 86400, -86400, -3600, 3600, -86400, 86400)[trial % 8]
            file.write_text(str(offset), encoding="ascii")
            # Flushing goes on, whichever way the clock went.
            service.arm("tell", "confirm")
            service.reached("tell", "confirm")
            time.sleep(0.2)

        repeat(service, trials, progress, fault)
        if "the clock jumped" not in service.server.log:
            raise BrokenError("the service did not see the clock jump")
        return f"{service.visitors.answers} answers"
