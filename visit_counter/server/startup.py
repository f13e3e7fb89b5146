"""What happens before the first worker starts and after the last one ended; gunicorn_conf.py calls it.

Everything that would stop the service is found here, in the master, and shown to a person in one line.
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

# gunicorn's status of a worker that cannot start: its master ends then, and does not try for ever.
_WORKER_BOOT_ERROR = 3
_OPEN_AGAIN_SECONDS = 1.0

# Of this process. Not in gunicorn_conf.py, which gunicorn reads again on SIGHUP.
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
    """Return the settings of this process's environment, or end the process telling every mistake."""
    with errors_in_one_line():
        _loaded[:] = [Settings.load(os.environ)]
    return _loaded[0]


def loaded_settings() -> Settings | None:
    """Return what `load_settings` returned last, in gunicorn's master: a worker that is started later has the same."""
    return _loaded[0] if _loaded else None


def worker_count(settings: Settings, environ: Mapping[str, str]) -> int:
    """Return how many workers gunicorn starts where no option says it."""
    default = 1 if settings.has.single_process else DEFAULT_WORKERS
    text = environ.get("WEB_CONCURRENCY") or str(default)
    if not text.isdecimal() or int(text) < 1:
        raise StartupError(f"WEB_CONCURRENCY is {text!r}; allowed: a whole number of workers from 1")
    return int(text)


def worker_class() -> str:
    """Return the worker that serves fastest here: the project's own needs epoll."""
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
    """Raise StartupError if something else listens where the service shall; unix sockets are gunicorn's matter."""
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
    # An upgrade in place: the workers of the former master live.
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

    # It stays as long as this process does. A garbage collection would walk over all of it, here and in each worker,
    # where what it writes would then be no longer shared.
    gc.freeze()


def clean_up() -> None:
    """End what `prepare` started."""
    while _embedded:
        _embedded.pop().stop()


def start_log(settings: Settings, addresses: Sequence[object]) -> list[str]:
    """Return the lines that tell where the service is and where it keeps its counts."""
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

    If it cannot start, one of the first workers ends, so that gunicorn's master ends too. A later worker, or one beside
    others that have the journal open, waits for it: the others serve on, and the master would end them.
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
                # What is here now, code for the most part, stays as long as the worker does. A garbage collection
                # would walk over all of it again and again, while every visitor waits.
                gc.freeze()
                return


def ignore_signals() -> None:
    """Let a worker that ends do so undisturbed; SIGKILL after gunicorn's graceful time-out stays.

    A worker gets two signals for one Ctrl-C, the terminal's and the master's. gunicorn's handler raises
    SystemExit at each, and the second one would break off the last flush or come before it.
    """
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        # Not SIG_IGN: Python prints a warning for a signal that has come and is ignored only then.
        signal.signal(number, _nothing)


def _nothing(_signal: int, _frame: object) -> None:
    """Handle a signal by doing nothing."""


def stop_service(app: object | None) -> None:
    """Stop the service in a worker, if it came to load one."""
    service = getattr(app, "extensions", {}).get("visit_counter")
    if service:
        ignore_signals()
        service.stop()


def share_memory() -> None:
    """Make what the workers share in memory; call it in the master, before the fork. It takes room once it is used."""
    for name in TABLES:
        shared(name)
