"""gunicorn's configuration, for `visit-counter serve` and `gunicorn wsgi:app`.

gunicorn's options (`-b`, `-w`, GUNICORN_CMD_ARGS) override this file. gunicorn executes the file at the start and again
on SIGHUP; no module imports it.
"""

import os
import sys
from typing import Any

from visit_counter.server import life, options, startup

settings = startup.load_settings()

bind = "127.0.0.1:8000"
worker_class = startup.worker_class()
logger_class = "visit_counter.server.log.Logger"
threads = 4
worker_connections = life.worker_connections()
with startup.errors_in_one_line():
    options.check_worker_class(worker_class, os.environ, sys.argv[1:])
    workers = startup.worker_count(settings, os.environ)
# In seconds, for the requests under way and the last flush.
graceful_timeout = 30
# The control socket needs a thread in the master, and a socket file that two services of one user would share.
control_socket_disable = True


def on_starting(server: Any) -> None:
    """Check everything and start the embedded shards, in the master."""
    inherited = server.cfg.reuse_port or {"GUNICORN_FD", "LISTEN_FDS"} & os.environ.keys()
    with startup.errors_in_one_line():
        options.check_threads(server.cfg.threads)
        warnings = startup.prepare(settings, server.cfg.workers, [] if inherited else server.cfg.address)
    for warning in warnings:
        server.log.warning(warning)
    startup.share_memory()
    life.refuse_in_json()
    life.end_while_booting()
    life.guard_reload(server, settings)
    if not settings.has.single_process:  # there, two workers would count side by side
        life.end_old_workers_last(server)
    life.start_again_by_name(server)


def when_ready(server: Any) -> None:
    """Log the service's addresses, its shards and its data directory."""
    for line in startup.start_log(settings, server.cfg.address):
        server.log.info(line)


def post_worker_init(worker: Any) -> None:
    """Open journal and connections, after the fork."""
    life.bound_gthread(worker)
    startup.start_service(worker)
    life.tell_that_it_serves(worker)


def worker_int(worker: Any) -> None:  # noqa: ARG001 - gunicorn passes it
    """Let a worker ignore all signals after its first Ctrl-C or SIGQUIT."""
    startup.ignore_signals()


def worker_exit(server: Any, worker: Any) -> None:
    """Flush a last time. gunicorn also calls this in the master, where the worker has no app."""
    startup.stop_service(getattr(worker, "wsgi", None))
    if os.getpid() != server.pid:
        life.leave_threads()


def on_exit(server: Any) -> None:  # noqa: ARG001 - gunicorn passes it
    """End the embedded shards, after the last worker."""
    startup.clean_up()
