"""The steps before the first worker starts and after the last one has ended; gunicorn_conf.py calls them.

They find, in the master, everything that would keep the service from starting, and show it to a person in one line.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import select
import signal
import socket
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from visit_counter.config.embedded_files import shards_dir, unused_directories
from visit_counter.config.settings import Settings
from visit_counter.embedded.shards import EmbeddedShards
from visit_counter.errors import JournalError, StartupError
from visit_counter.journal.segments import Journal
from visit_counter.journal.witnesses import Witnesses, wait_until_there
from visit_counter.private_files import check_data_dir
from visit_counter.statistics.shared_table import TABLES, shared

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

log = logging.getLogger(__name__)

DEFAULT_WORKERS = 2

# The exit status by which a worker says that it cannot start: gunicorn's master then ends, and does not try for ever.
_WORKER_BOOT_ERROR = 3
_OPEN_AGAIN_SECONDS = 1.0

# The state of this process. It is not in gunicorn_conf.py, which gunicorn executes again on SIGHUP.
_embedded: list[EmbeddedShards] = []
_loaded: list[Settings] = []
_witnesses: list[Witnesses] = []


@contextmanager
def errors_in_one_line(status: int = 1) -> Iterator[None]:
    """End the process with a message instead of a traceback if the service cannot start."""
    try:
        yield
    except StartupError as error:
        sys.stderr.write(f"visit-counter: {error}\n")
        raise SystemExit(status) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def load_settings() -> Settings:
    """Return the settings from this process's environment, or end the process with a message on every mistake."""
    with errors_in_one_line():
        _loaded[:] = [Settings.load(os.environ)]
    return _loaded[0]


def loaded_settings() -> Settings | None:
    """Return the settings that the master loaded last: a worker that is started later uses the same ones."""
    return _loaded[0] if _loaded else None


def worker_count(settings: Settings, environ: Mapping[str, str]) -> int:
    """Return how many workers gunicorn starts if no option sets the number."""
    default = 1 if settings.has.single_process else DEFAULT_WORKERS
    text = environ.get("WEB_CONCURRENCY") or str(default)
    if not text.isdecimal() or int(text) < 1:
        raise StartupError(f"WEB_CONCURRENCY is {text!r}; allowed: a whole number of workers from 1")
    return int(text)


def worker_class() -> str:
    """Return the fastest worker class for this system: the project's own needs epoll."""
    return "visit_counter.server.worker.VisitWorker" if hasattr(select, "epoll") else "gthread"


def check_worker_count(settings: Settings, workers: int) -> None:
    """Raise StartupError for more workers than the profile can have."""
    if workers < 1:
        raise StartupError(f"{workers} workers would answer nobody; allowed: -w 1 or more")
    if settings.has.single_process and workers != 1:
        raise StartupError(
            f"{workers} workers with VISITS_PROFILE {settings.profile}; allowed: 1, because this profile keeps its "
            "numbers in one process"
        )


def check_address_is_free(address: object) -> None:
    """Raise StartupError if the service cannot listen at this address; gunicorn checks unix sockets itself."""
    if not isinstance(address, tuple):
        return
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            said = (
                "is in use by something else" if error.errno == errno.EADDRINUSE else f"cannot be had: {error.strerror}"
            )
            raise StartupError(
                f"the address {address[0]}:{address[1]} {said}; choose another one with -b host:port"
            ) from None


def prepare(settings: Settings, workers: int, addresses: Sequence[object]) -> list[str]:
    """Check everything and start the embedded shards; return warnings, or raise StartupError."""
    check_worker_count(settings, workers)
    for address in addresses:
        check_address_is_free(address)
    if not settings.has.has_shards:
        _load_code()
        return []
    warnings = check_data_dir(settings.data_dir)
    if settings.has.journal:
        prepare_journal(Journal(settings.data_dir / "journal"))
    if settings.embedded:
        shards = EmbeddedShards(settings)
        shards.begin()
        _load_code()  # meanwhile
        shards.wait()
        _embedded.append(shards)
        if unused := ", ".join(unused_directories(settings.data_dir)):
            warnings.append(f"{shards_dir(settings.data_dir)} has counts of {unused}, which no shard uses")
    else:
        _load_code()
    from visit_counter.server import shard_checks  # noqa: PLC0415 - see `_load_code`

    if not settings.embedded:
        warnings += shard_checks.check_shards(settings)
    shard_checks.tell_of_other_shards(settings)
    return warnings


def prepare_journal(journal: Journal) -> None:
    """Make the journal if there is none, before the first worker starts. Raises StartupError."""
    # In an upgrade in place, the workers of the former master are still running.
    if "GUNICORN_PID" in os.environ and not journal.is_there():
        log.warning("%s is gone; waiting for the workers that run to put it back", journal.path)
        wait_until_there(journal)
    journal.prepare()
    _witnesses[:] = [Witnesses()]


def _load_code() -> None:
    """Load all code that workers run before the first one is forked, so that they share its memory and start quickly.

    This takes most of the time of a start, and the embedded shards start meanwhile. So a module that gunicorn loads
    before this does not import Flask or redis-py at its top.
    """
    from visit_counter import create_app  # noqa: F401, PLC0415 - for what its import loads

    # This code stays for as long as the process. A garbage collection would visit all its objects, here and in each
    # worker; and since it writes to what it visits, the workers would no longer share that memory.
    gc.freeze()


def clean_up() -> None:
    """End what `prepare` started."""
    while _embedded:
        _embedded.pop().stop()


def start_log(settings: Settings, addresses: Sequence[object]) -> list[str]:
    """Return the lines of the log that name the service's addresses, its shards and its data directory."""
    shown = [
        f"http://{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address) for address in addresses
    ]
    lines = [f"Visit Counter at {', '.join(shown)}, profile {settings.profile}"]
    if settings.shards:
        shards = ", ".join(f"{shard.name} at {shard.address}" for shard in settings.shards)
        lines += [f"shards{' (embedded)' if settings.embedded else ''}: {shards}"]
        lines += [f"data directory: {settings.data_dir}"]
    return lines


def start_service(worker: Any) -> None:
    """Start the service in a worker of gunicorn.

    If it cannot start in one of the first workers, this worker ends, so that gunicorn's master also ends. A later
    worker, or one beside others that have the journal open, tries again instead: the others go on serving, and the
    master would end them.
    """
    service = worker.wsgi.extensions["visit_counter"]
    service.witnesses = witnesses = _witnesses[0] if _witnesses else None
    is_logged = False
    with errors_in_one_line(_WORKER_BOOT_ERROR):
        while worker.alive and worker.ppid == os.getppid():
            try:
                service.start()
            except (OSError, JournalError, StartupError) as error:
                if worker.age <= worker.cfg.workers and not (witnesses and witnesses.others()):
                    raise StartupError(str(error)) from None
                if not is_logged:
                    log.error("a new worker cannot open the journal and waits until it can: %s", error)
                is_logged = True
                worker.notify()
                time.sleep(_OPEN_AGAIN_SECONDS)
            else:
                # The objects that exist now, mostly code, stay for as long as the worker. Each full garbage collection
                # would visit all of them, and every request would wait for it.
                gc.freeze()
                return


def ignore_signals() -> None:
    """Let a worker that is ending ignore further signals, except SIGKILL after gunicorn's graceful time-out.

    A worker gets two signals for one Ctrl-C: from the terminal and from the master. gunicorn's handler raises
    SystemExit at each of them, and the second one would interrupt or prevent the last flush.
    """
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        # This is not SIG_IGN: Python prints a warning for a signal that has come before and is ignored afterwards.
        signal.signal(number, _nothing)


def _nothing(_signal: int, _frame: object) -> None:
    """Handle a signal by doing nothing."""


def stop_service(app: object | None) -> None:
    """Stop the service in a worker, if the worker has loaded it."""
    service = getattr(app, "extensions", {}).get("visit_counter")
    if service:
        ignore_signals()
        service.stop()


def share_memory() -> None:
    """Make the tables that the workers share; call it in the master, before the fork. Memory is used when written."""
    for name in TABLES:
        shared(name)
