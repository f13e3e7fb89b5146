"""A primary, its replica and three real sentinels for tests."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from tests.support.cluster import keep_behind
from tests.support.least_acl import LEAST_USER, PASSWORD, user_options
from tests.support.ports import free_port
from tests.support.redis_servers import Server, Servers, call
from tests.support.servers import wait_until
from visit_counter.config.settings import Shard
from visit_counter.embedded.program import server_binary

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SERVICE = "main"
# Low, so that a failover takes a second or two. Milliseconds.
DOWN_AFTER = 500


class Sentinels(Servers):
    """Two servers and the sentinels that watch them; `servers[0]` starts as the primary."""

    def __init__(self, folder: Path) -> None:
        self.ports: list[int] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        super().__init__(folder)

    def start_all(self, folder: Path, options: Sequence[str]) -> None:
        primary = self._server(folder / "0", *options)
        self._server(folder / "1", *options, "--replicaof", f"127.0.0.1 {primary.port}")
        for number in range(3):
            self._start_sentinel(folder / f"sentinel_{number}", primary.port)
        self.wait_until_whole()

    def close(self) -> None:
        """End everything, the sentinels first."""
        for process in self._processes:
            process.kill()
            process.wait()
        super().close()

    @property
    def shard(self) -> Shard:
        """Return the pair as the service knows it."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        return Shard("watched", f"redis+sentinel://{LEAST_USER}:{PASSWORD}@{hosts}/{SERVICE}")

    def primary(self) -> Server | None:
        """Return the running server that all sentinels hold for the primary, if they agree."""
        named = {str(self._ask(port, "GET-MASTER-ADDR-BY-NAME", SERVICE)) for port in self.ports}
        found = [each for each in self.servers if named == {f"['127.0.0.1', '{each.port}']"} and each.runs()]
        return found[0] if found and found[0].role() == "master" else None

    def fail_over(self, *, behind: bool = False) -> Server:
        """End the primary as kill -9 does; return it when the other one is the primary.

        With `behind`, that one has not received what the primary was told last.
        """
        old = self.primary()
        assert old is not None
        if behind:
            keep_behind(next(each for each in self.servers if each is not old), old)
        old.kill()
        wait_until(lambda: self.primary() not in (None, old), "the sentinels to promote the replica")
        return old

    def demote(self) -> None:
        """Have the primary changed by hand, and return when all know the new one."""
        old = self.primary()
        wait_until(
            lambda: self._ask(self.ports[0], "FAILOVER", SERVICE) in (True, "OK") or self.primary() not in (None, old),
            "a sentinel to start a failover",
        )
        wait_until(lambda: self.primary() not in (None, old), "the sentinels to promote the replica")
        self.wait_until_whole()

    def bring_back(self, server: Server) -> None:
        """Start a server again, as the replica of the primary there is now."""
        primary = self.primary()
        assert primary is not None
        server.options = tuple(
            part for part in server.options if part != "--replicaof" and not part.startswith("127.0.0.1 ")
        )
        server.options += ("--replicaof", f"127.0.0.1 {primary.port}")
        server.start()
        self.wait_until_whole()

    def mend(self) -> None:
        """Bring back a server that does not run, and empty both."""
        for server in self.servers:
            if not server.runs():
                self.bring_back(server)
        primary = self.primary()
        assert primary is not None, "the sentinels know no primary"
        primary.call("FLUSHALL")

    def wait_until_whole(self) -> None:
        """Wait until a failover could succeed: all know each other, and the replica is in touch."""
        wait_until(self._is_whole, "the sentinels and both servers to be in touch")

    def _is_whole(self) -> bool:
        primary = self.primary()
        if primary is None:
            return False
        replication = primary.call("INFO", "replication")
        if not isinstance(replication, dict) or replication["connected_slaves"] != 1:
            return False
        # While the replica takes over all data it still has its own, and might be promoted with that.
        if not all(each is primary or _is_in_touch(each) for each in self.servers):
            return False
        return all(
            "'num-slaves', '1'" in (said := str(self._ask(port, "MASTER", SERVICE)))
            and "'num-other-sentinels', '2'" in said
            and "'flags', 'master'" in said
            and "'flags', 'slave'" in str(self._ask(port, "REPLICAS", SERVICE))
            for port in self.ports
        )

    def _ask(self, port: int, *command: str) -> object:
        return call(port, "SENTINEL", *command)

    def _server(self, folder: Path, *options: str) -> Server:
        self.servers.append(
            Server(folder, "--repl-diskless-sync-delay", "0", *user_options(), *options, port=free_port())
        )
        return self.servers[-1]

    def _start_sentinel(self, folder: Path, primary_port: int) -> None:
        port = free_port()
        folder.mkdir(parents=True)
        # A sentinel writes what it learns into its file.
        (folder / "sentinel.conf").write_text(
            f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary_port} 2\n"
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER}\n"
            f"sentinel failover-timeout {SERVICE} 3000\n",
            encoding="ascii",
        )
        command = [server_binary(), str(folder / "sentinel.conf"), "--sentinel"]
        self._processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT))
        self.ports.append(port)


def _is_in_touch(replica: Server) -> bool:
    replication = replica.call("INFO", "replication")
    return isinstance(replication, dict) and replication.get("master_link_status") == "up"
