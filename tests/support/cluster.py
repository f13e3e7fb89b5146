"""A real Redis Cluster for tests: three primaries with a replica each, made by commands alone."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from tests.support.least_acl import LEAST_USER, PASSWORD, user_options
from tests.support.ports import free_port
from tests.support.redis_servers import Server, Servers
from tests.support.servers import wait_until
from visit_counter.config.settings import Shard
from visit_counter.shards.cluster.slots import SLOT_OF

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

SLOTS = 16384
# Low, so that a failover takes a second or two. Milliseconds.
NODE_TIMEOUT = 1000


class Cluster(Servers):
    """Six servers: `servers[0:3]` start as primaries, and `servers[n + 3]` as the replica of `servers[n]`."""

    @property
    def shard(self) -> Shard:
        """Return the cluster as the service knows it, as the user that the manual describes."""
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in self.servers[:3])
        return Shard("cluster", f"redis+cluster://{LEAST_USER}:{PASSWORD}@{hosts}")

    # -- what it is like now -----------------------------------------------------------------------------------------

    def owner_of(self, slot: int) -> Server:
        """Return the primary that has a slot, as a running server says."""
        for server in self._running():
            if port := self._says(server, slot):
                return next(each for each in self.servers if each.port == port)
        raise AssertionError(f"slot {slot} has no server")

    def owner_of_partition(self, partition: int) -> Server:
        """Return the primary that has a partition."""
        return self.owner_of(SLOT_OF[partition])

    def primaries(self) -> list[Server]:
        """Return the running servers that are primaries."""
        return [server for server in self._running() if server.role() == "master"]

    def is_whole(self) -> bool:
        """Tell whether every server runs, agrees that all slots are served, and every replica is in touch."""
        running = self._running()
        return len(running) == 6 and all(_is_well(server) for server in running) and len(self.primaries()) == 3

    # -- what happens to it ------------------------------------------------------------------------------------------

    def move_slot(
        self, slot: int, source: Server, target: Server, meanwhile: Callable[[], None] = lambda: None
    ) -> None:
        """Move a slot with its keys, step by step as redis-cli does, while everybody goes on.

        `meanwhile` is called before the keys move, and after they have while the slot has not.
        """
        source_id, target_id = source.call("CLUSTER", "MYID"), target.call("CLUSTER", "MYID")
        _must(target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", str(source_id)))
        _must(source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", str(target_id)))
        meanwhile()
        while keys := source.call("CLUSTER", "GETKEYSINSLOT", slot, 10):
            assert isinstance(keys, list), keys
            _must(source.call("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys))
        meanwhile()
        # The new owner first, so that the slot is never without one.
        for server in [target, source]:
            _must(server.call("CLUSTER", "SETSLOT", slot, "NODE", str(target_id)))

    def wait_until_all_know(self, slot: int, owner: Server) -> None:
        """Wait until every running server says that a slot is this one's: a move spreads from server to server."""
        wait_until(lambda: all(self._says(server, slot) == owner.port for server in self._running()), "all to know it")

    @staticmethod
    def _says(server: Server, slot: int) -> int:
        """Return the port of the primary that has a slot, as a server says; 0 for none."""
        reply = server.call("CLUSTER", "SLOTS")
        assert isinstance(reply, list), reply
        return next((int(primary[1]) for first, last, primary, *_ in reply if first <= slot <= last), 0)

    def wait_until_whole(self) -> None:
        """Wait until nothing is left of a failover."""
        wait_until(self.is_whole, "the cluster to be whole again")

    def mend(self) -> None:
        """Start the servers that do not run, and empty the cluster once it is whole."""
        for server in self.servers:
            if not server.runs():
                server.start()
        self.wait_until_whole()
        for server in self.primaries():
            server.call("FLUSHALL")

    def replica_of(self, primary: Server) -> Server:
        """Return the replica of a primary."""
        for server in self._running():
            role = server.call("ROLE")
            if isinstance(role, list) and role[0] == "slave" and role[2] == primary.port:
                return server
        raise AssertionError("it has no replica")

    def fail_over(self, server: Server, *, behind: bool = False) -> None:
        """End a primary as kill -9 does, and return when its replica has its slots.

        With `behind`, the replica has not received what the primary was told last.
        """
        if behind:
            keep_behind(self.replica_of(server), server)
        server.kill()
        wait_until(lambda: len(self.primaries()) == 3, "a replica to be promoted")

    def _running(self) -> list[Server]:
        return [server for server in self.servers if server.runs()]

    # -- making it ---------------------------------------------------------------------------------------------------

    def start_all(self, folder: Path, options: Sequence[str]) -> None:
        for number in range(6):
            self._start(folder / str(number), options)
        self._make()

    def _start(self, folder: Path, options: Sequence[str]) -> None:
        bus = free_port()
        cluster = ["--cluster-enabled", "yes", "--cluster-port", str(bus), "--cluster-node-timeout", str(NODE_TIMEOUT)]
        cluster += ["--cluster-require-full-coverage", "no", "--repl-diskless-sync-delay", "0"]
        server = Server(folder, *cluster, *user_options(cluster=True), *options, port=free_port())
        server.bus = bus
        self.servers.append(server)

    def _make(self) -> None:
        first, *others = self.servers
        for number, server in enumerate(self.servers):
            _must(server.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1))
        for number, server in enumerate(self.servers[:3]):
            _must(server.call("CLUSTER", "ADDSLOTSRANGE", SLOTS * number // 3, SLOTS * (number + 1) // 3 - 1))
        for server in others:
            _must(first.call("CLUSTER", "MEET", "127.0.0.1", server.port, server.bus))
        wait_until(lambda: all(_known(server) == 6 for server in self.servers), "the servers to know each other")
        for primary, replica in zip(self.servers[:3], self.servers[3:], strict=True):
            primary_id = str(primary.call("CLUSTER", "MYID"))
            wait_until(
                lambda replica=replica, own=primary_id: replica.call("CLUSTER", "REPLICATE", own) in (True, "OK"),  # type: ignore[misc]  # mypy cannot infer it
                "a replica to take its place",
            )
        self.wait_until_whole()


def cut_off(replica: Server, primary: Server) -> None:
    """Let a replica ask in vain to be told what its primary is told."""
    primary.call("ACL", "SETUSER", "default", "-psync", "-sync")
    replica.call("CLIENT", "KILL", "TYPE", "master")


def keep_behind(replica: Server, primary: Server) -> None:
    """Cut a replica off, and return when others have told the primary something."""
    cut_off(replica, primary)
    wait_until(lambda: _offset(primary) > _offset(replica) + 2000, "the primary to be ahead of its replica")


def _offset(server: Server) -> int:
    replication = server.call("INFO", "replication")
    assert isinstance(replication, dict), replication
    return int(replication["slave_repl_offset" if replication["role"] == "slave" else "master_repl_offset"])


def _known(server: Server) -> int:
    nodes = str(server.call("CLUSTER", "NODES")).splitlines()
    return sum("handshake" not in node for node in nodes)


def _is_well(server: Server) -> bool:
    info, replication = str(server.call("CLUSTER", "INFO")), server.call("INFO", "replication")
    if not isinstance(replication, dict):
        return False
    in_touch = replication["role"] == "master" or replication["master_link_status"] == "up"
    replicated = replication["role"] == "slave" or replication["connected_slaves"] == 1
    return "cluster_state:ok" in info and in_touch and replicated


def _must(reply: object) -> None:
    assert reply in (True, "OK", "NOKEY"), reply


def main() -> None:
    """Start one and show it, for a look by hand."""
    import tempfile  # noqa: PLC0415 - for this look alone
    from pathlib import Path  # noqa: PLC0415 - for this look alone

    with suppress(KeyboardInterrupt), tempfile.TemporaryDirectory() as folder, Cluster(Path(folder)) as cluster:
        print(cluster.shard.url, flush=True)
        time.sleep(3600)


if __name__ == "__main__":
    main()
