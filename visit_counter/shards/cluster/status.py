"""What the servers of a cluster are like: a row for each."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from visit_counter.errors import StoreError
from visit_counter.shards.parallel import in_parallel
from visit_counter.shards.redis.describe import ServerStatus
from visit_counter.shards.redis.inspection import Held, count_pages_of
from visit_counter.shards.redis.wire import explain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from visit_counter.shards.cluster.servers import ClusterServers
    from visit_counter.shards.redis.server import RedisServer


def status_of(
    shard: str, servers: ClusterServers, writer: str, partitions: Sequence[int], *, strays: bool
) -> list[ServerStatus]:
    """Return what each server is like that has any of the partitions, and last what has no server.

    The pages are counted wherever MOVED and ASK lead, because a slot may be moving. With `strays`, the first row
    warns of counts in other partitions.
    """
    servers.slots.refresh(force=True)
    try:
        held = count_pages_of(servers.ask_each, writer, partitions, strays=strays)
    except RedisError as error:
        held = Held({}, dict.fromkeys(partitions, error))
    by_address: dict[str, list[int]] = {}
    for partition in partitions:
        by_address.setdefault(servers.slots.owner(partition), []).append(partition)
    without = by_address.pop("", [])
    rows = in_parallel(
        [partial(_row_of, shard, servers.at(address), mine, held) for address, mine in sorted(by_address.items())]
    )
    if held.strays and rows:
        rows[0] = replace(rows[0], warnings=(*rows[0].warnings, *held._replace(errors={}).warnings(shard)))
    if without:
        why = explain(shard, servers.slots.error).reason if servers.slots.error else "no server has these partitions"
        rows.append(ServerStatus(servers.listed, partitions=len(without), error=why))
    return rows


def _row_of(shard: str, server: RedisServer, partitions: Sequence[int], held: Held) -> ServerStatus:
    """Return the row of a server, given what was found in the partitions of all."""
    try:
        said = server.describe()
    except StoreError as error:
        return server.status_when_down(len(partitions), error.reason)
    mine = Held({}, {at: held.errors[at] for at in partitions if at in held.errors})
    pages = sum(held.pages.get(at, 0) for at in partitions)
    warnings = (*said.warnings, *mine.warnings(shard))
    return ServerStatus(server.address, partitions=len(partitions), up=True, pages=pages, said=said, warnings=warnings)
