"""Real gunicorn servers for tests: started on a socket of the test's own, stopped by their pid."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.support.servers import DEADLINE_SECONDS, REPOSITORY, wait_until

STUB = "tests.support.stub_service:create_app()"


class Server:
    """A gunicorn master and its workers, behind a socket that listens before they start."""

    def __init__(
        self, directory: Path, config: str = "", *, worker: str = "visit_counter.server.worker.VisitWorker"
    ) -> None:
        """Start; `config` is the text of a gunicorn configuration file, which may name more sockets or the worker."""
        self.log = directory / f"{worker}.log"
        self.config = directory / f"{worker}.conf.py"
        self.config.write_text("threads = 2\ncontrol_socket_disable = True\n" + config)
        self._clients: list[Client] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.address: tuple[str, int] = self._listener.getsockname()
        arguments = ["-c", str(self.config), *(("-k", worker) if worker else ()), STUB]
        if "bind =" not in config:
            arguments += ["-b", f"fd://{self._listener.fileno()}"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", *arguments],
                cwd=REPOSITORY,
                stdout=log,
                stderr=log,
                pass_fds=(self._listener.fileno(),),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> int:
        """End gracefully; return the master's exit status."""
        for client in self._clients:
            client.close()
        with suppress(ProcessLookupError):
            self.process.terminate()
        try:
            return self.process.wait(DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self._listener.close()

    def signal(self, number: int) -> None:
        """Send the master a signal."""
        self.process.send_signal(number)

    def text(self) -> str:
        """Return what gunicorn wrote."""
        return self.log.read_text()

    def worker_pids(self) -> list[int]:
        """Return the pids of the workers, once they serve."""
        wait_until(lambda: "Booting worker" in self.text(), "a worker boots")
        self.client().ask("GET", "/visits/any").close()
        return [int(pid) for pid in re.findall(r"Booting worker with pid: (\d+)", self.text())]

    def listener(self) -> socket.socket:
        """Return the socket that the workers accept from; an accepted one begins with its options."""
        return self._listener

    def client(self) -> Client:
        """Return a new connection; `stop` closes it if the test does not."""
        client = Client(socket.create_connection(self.address))
        self._clients.append(client)
        return client


class Client:
    """A blocking HTTP/1 client that shows the wire: what it sends and gets is bytes."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(DEADLINE_SECONDS)
        self._read = b""

    def send(self, data: bytes) -> Self:
        """Send bytes as they are."""
        self.sock.sendall(data)
        return self

    def ask(self, method: str, path: str, *fields: str, body: bytes = b"") -> Self:
        """Send an ordinary request."""
        length = (f"Content-Length: {len(body)}",) if body else ()
        lines = [f"{method} {path} HTTP/1.1", "Host: counter.example", *length, *fields]
        return self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def line(self, ending: bytes = b"\r\n\r\n") -> bytes:
        """Return what comes up to the ending."""
        while ending not in self._read:
            more = self.sock.recv(65536)
            if not more:
                raise ConnectionError(f"closed after {self._read!r}")
            self._read += more
        found, _, self._read = self._read.partition(ending)
        return found

    def answer(self, *, has_body: bool = True) -> Reply:
        """Return the next answer."""
        status, *lines = self.line().decode().split("\r\n")
        fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(fields.get("content-length", 0)) if has_body else 0
        while len(self._read) < length:
            more = self.sock.recv(65536)
            if not more:
                raise ConnectionError("closed within a body")
            self._read += more
        body, self._read = self._read[:length], self._read[length:]
        return Reply(status, fields, body)

    def is_closed(self) -> bool:
        """Wait until the server closes, and tell whether it did so with nothing more to say."""
        try:
            return not self._read and not self.sock.recv(1)
        except ConnectionResetError:
            return True

    def close(self) -> None:
        """Close the connection."""
        self.sock.close()


class Reply:
    """One answer: its status line, its fields in lower case, its body."""

    def __init__(self, status: str, fields: dict[str, str], body: bytes) -> None:
        self.status_line = status
        self.status = int(status.split()[1])
        self.fields = fields
        self.body = body

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reply) and self.comparable() == other.comparable()

    def __hash__(self) -> int:
        return hash(self.status_line)

    def __repr__(self) -> str:
        return f"Reply{self.comparable()!r}"

    def comparable(self) -> tuple[str, dict[str, str], bytes]:
        """Return all but what differs from one second, or one server, to the next."""
        fields = {name: value for name, value in self.fields.items() if name not in ("date", "server")}
        return self.status_line, fields, self.body
