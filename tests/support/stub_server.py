"""gunicorn with a stub of the service, on a socket of the test's own: for the tests of the worker."""

from __future__ import annotations

import re
import signal
import socket
from typing import TYPE_CHECKING, Self

from tests.support.http_client import Client
from tests.support.servers import GunicornServer, wait_until

if TYPE_CHECKING:
    from pathlib import Path

STUB = "tests.support.stub_service:create_app()"


class StubServer(GunicornServer):
    """The stub, behind a socket that listens before gunicorn starts; use it in a `with`."""

    def __init__(
        self, directory: Path, config: str = "", *, worker: str = "visit_counter.server.worker.VisitWorker"
    ) -> None:
        """`config` is the text of a gunicorn configuration file, which may name other sockets or the worker."""
        file = directory / "stub.conf.py"
        file.write_text("threads = 2\ncontrol_socket_disable = True\n" + config)
        # The workers accept from it; what they accept begins with its options.
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._clients: list[Client] = []
        options = ("-c", str(file), *(("-k", worker) if worker else ()))
        super().__init__(directory, *options, port=self.listener.getsockname()[1], app=STUB)
        self.inherited = (self.listener.fileno(),)
        self._bind = () if "bind =" in config else ("-b", f"fd://{self.listener.fileno()}")

    def __enter__(self) -> Self:
        return self.spawn()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def listens_on(self) -> tuple[str, ...]:
        return self._bind

    def stop(self, number: int = signal.SIGTERM) -> int:
        for client in self._clients:
            client.close()
        try:
            return super().stop(number)
        finally:
            self.listener.close()

    def serving_pids(self) -> list[int]:
        """Return the pids of the workers that have booted, once one of them serves."""
        wait_until(lambda: "Booting worker" in self.log, "a worker boots")
        self.client().ask("GET", "/visits/any").close()
        return [int(pid) for pid in re.findall(r"Booting worker with pid: (\d+)", self.log)]

    def client(self) -> Client:
        """Return a new connection; `stop` closes it if the test does not."""
        client = Client(socket.create_connection(("127.0.0.1", self.port)))
        self._clients.append(client)
        return client
