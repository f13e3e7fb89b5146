"""Changes how gunicorn's processes live: more open files, a careful reload, a stop that takes only seconds.

The hooks in gunicorn_conf.py call this, in the master and in every class of worker.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gunicorn import util

from visit_counter.config.settings import Settings
from visit_counter.errors import StartupError
from visit_counter.model.problems import problem
from visit_counter.private_files import check_data_dir
from visit_counter.server.serve import program_of

if TYPE_CHECKING:
    from collections.abc import Callable

# Settings that a running master cannot change: they decide about the embedded shards, about journals that hold visits,
# and about the number of processes.
_FIXED = ("profile", "embedded", "embedded_ports", "data_dir")
_CHECK_SECONDS = 60.0
# How long old workers wait for new ones, which may wait for the journal's disk.
_READY_SECONDS = 10.0
_SERVES = 0o400  # the mode of the file of a worker that serves; before, it is 0o600
_CONNECTIONS = 8000
_OTHER_FILES = 256  # the journal, connections to shards
_FILES = _CONNECTIONS + _OTHER_FILES
# How long gunicorn's own workers wait for the next byte of a client, and for clients when they must stop.
_GTHREAD_WAIT_SECONDS = 30
_GTHREAD_STOP_SECONDS = 2  # gunicorn accepts only whole seconds
# How long every worker waits for its threads, at the very end.
_THREADS_SECONDS = 0.3


# -- connections -------------------------------------------------------------------------------------------------------


def worker_connections() -> int:
    """Return how many clients a worker may have, after raising the limit of open files as far as this user may.

    This is a few thousand: an idle or slow client costs one file and some memory, and only a full worker turns others
    away.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _FILES:
        soft = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return _CONNECTIONS if soft == resource.RLIM_INFINITY else max(64, min(_CONNECTIONS, soft - _OTHER_FILES))


# -- reload ------------------------------------------------------------------------------------------------------------


def guard_reload(server: Any, settings: Settings) -> None:
    """Let SIGHUP change nothing if the new configuration is wrong; gunicorn would end the service."""
    reload: Callable[[], None] = server.handle_hup

    def reload_if_right() -> None:
        wrong = _wrong_configuration(program_of(server.app), server.START_CTX["cwd"], settings)
        if wrong:
            server.log.error("SIGHUP: the new configuration is wrong, the service goes on with the old one: %s", wrong)
        else:
            reload()

    server.handle_hup = reload_if_right


def end_old_workers_last(server: Any) -> None:
    """Let gunicorn end surplus workers, the oldest ones, only once the newer ones serve.

    After SIGHUP it would end them while the new ones still boot, and no worker would answer.
    """
    manage: Callable[[], None] = server.manage_workers

    def end_when_replaced() -> None:
        by_age = sorted(server.WORKERS.values(), key=lambda worker: worker.age)
        old = by_age[: -server.num_workers]
        if not old:
            manage()
            return
        new = by_age[len(old) :]
        deadline = time.monotonic() + _READY_SECONDS
        while not all(map(_serves, new)) and time.monotonic() < deadline:
            time.sleep(0.01)
            server.reap_workers()
            new = [worker for worker in new if worker.pid in server.WORKERS]
        for worker in old:
            if worker.pid in server.WORKERS:
                server.kill_worker(worker.pid, signal.SIGTERM)

    server.manage_workers = end_when_replaced


def tell_that_it_serves(worker: Any) -> None:
    """Show the master, by the mode of the file that they share, that this worker is about to accept connections."""
    os.fchmod(worker.tmp.fileno(), _SERVES)


def _serves(worker: Any) -> bool:
    return os.fstat(worker.tmp.fileno()).st_mode & 0o777 == _SERVES


def _wrong_configuration(program: str, directory: str, running: Settings) -> str:
    """Return what is wrong with the configuration that is on the disk now, or an empty text."""
    # A process of its own does the check, so that nothing it loads stays in the master. The command does not use
    # sys.argv[0]: if that is a file in gunicorn's folder, Python imports gunicorn's `http` in place of the library's.
    command = [sys.executable, "-m", program, *sys.argv[1:], "--check-config"]
    environ = {name: text for name, text in os.environ.items() if name not in ("GUNICORN_PID", "GUNICORN_FD")}
    try:
        checked = subprocess.run(
            command, cwd=directory, env=environ, capture_output=True, text=True, timeout=_CHECK_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"reading it takes more than {_CHECK_SECONDS:.0f} s"
    if checked.returncode:
        return checked.stderr.strip() or f"{program} --check-config ends with status {checked.returncode}"
    try:
        return _wrong_settings(Settings.load(os.environ), running)
    except StartupError as error:
        return str(error)


def start_again_by_name(server: Any) -> None:
    """Let SIGUSR2 start `python -m` again, if the service was started so; gunicorn would run the file as a script.

    Python would then search that file's folder first, and import gunicorn's `http` in place of the library's.
    """
    if Path(sys.argv[0]).name == "__main__.py":
        server.START_CTX["args"] = [sys.executable, "-m", program_of(server.app), *sys.argv[1:]]


def _wrong_settings(new: Settings, running: Settings) -> str:
    changed = [f"VISITS_{name.upper()}" for name in _FIXED if getattr(new, name) != getattr(running, name)]
    if changed:
        return f"{', '.join(changed)} cannot change while the service runs; stop it and start it again"
    if new.has.has_shards:
        check_data_dir(new.data_dir)
        if not new.embedded:
            from visit_counter.server.shard_checks import check_shards  # noqa: PLC0415 - see `startup._load_code`

            check_shards(new)
    return ""


# -- refusals ----------------------------------------------------------------------------------------------------------


def refuse_in_json() -> None:
    """Let gunicorn send a problem document where it refuses a request by itself; otherwise it would send HTML."""
    vars(util)["write_error"] = _write_error


def _write_error(sock: Any, status: int, reason: str, detail: str) -> None:
    _, fields, body = problem(status, detail)
    lines = [f"HTTP/1.1 {status} {reason}", "Connection: close", *(f"{name}: {value}" for name, value in fields)]
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}"])
    util.write_nonblock(sock, f"{head}\r\n\r\n".encode("latin-1") + body)


# -- stop --------------------------------------------------------------------------------------------------------------


def end_while_booting() -> None:
    """Let a signal end a worker at once that has not installed gunicorn's handlers yet.

    Without this, such a worker would miss the signal, and the master would kill it much later. Call it in the master,
    before the first fork.
    """
    master = os.getpid()
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)

    def end_at_once(_signal: int, _frame: object) -> None:
        os._exit(0)

    def before() -> None:
        # The signals are blocked during the fork: one that comes before Python is ready in the child would be lost.
        if os.getpid() == master:
            signal.pthread_sigmask(signal.SIG_BLOCK, numbers)

    def in_master() -> None:
        if os.getpid() == master:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)

    def in_child() -> None:
        if os.getppid() == master:
            for number in numbers:
                signal.signal(number, end_at_once)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)

    os.register_at_fork(before=before, after_in_parent=in_master, after_in_child=in_child)


def bound_gthread(worker: Any) -> None:
    """Bound how long gunicorn's gthread worker waits for a client, and let it close its sockets when it must stop."""
    if type(worker).__module__ != "gunicorn.workers.gthread":
        return
    # This changes the worker's own copy: the master still allows the time for the last flush.
    worker.cfg.set("graceful_timeout", _GTHREAD_STOP_SECONDS)
    # Accepted sockets inherit these time-outs. Without them, a thread waits for ever for a client that sends no more.
    for listener in worker.sockets:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            listener.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", _GTHREAD_WAIT_SECONDS, 0))
    set_accept_enabled: Callable[[bool], None] = worker.set_accept_enabled

    def and_close(enabled: bool) -> None:
        set_accept_enabled(enabled)
        if not worker.alive:
            for listener in worker.sockets:
                listener.close()

    worker.set_accept_enabled = and_close
    # The queue stays open: a thread that ends later writes to its file number, which another file could have by then.
    worker.method_queue.close = lambda: None

    def quit_soon(number: int, frame: object) -> None:
        # gunicorn's own handler ends the pool of threads here, and then waits for ever if the loop was about to use it.
        worker.cfg.set("graceful_timeout", 0)
        worker.cfg.worker_int(worker)
        worker.handle_exit(number, frame)

    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, quit_soon)


def leave_threads() -> None:
    """End this process even if a thread still waits for a client or a shard; Python would wait for the thread.

    Call it last: functions that were registered for the end of the process do not run.
    """
    deadline = time.monotonic() + _THREADS_SECONDS
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(0)
