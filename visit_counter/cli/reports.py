"""What the commands show, as data: rows and fields in the order they are printed."""

from __future__ import annotations

import getpass
import os
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visit_counter.config.embedded_files import read_password
from visit_counter.config.shard_urls import parse_shards
from visit_counter.errors import RebalanceError, StoreError
from visit_counter.journal.checkpoint import Checkpoint, acknowledge, acknowledged
from visit_counter.runtime.health import replica_complaint
from visit_counter.shards.cluster.store import ClusterStore
from visit_counter.shards.contract import NO_WATERMARK, segment_of
from visit_counter.shards.rebalance.rebalance import Rebalance, gather_stores
from visit_counter.shards.redis.describe import ServerStatus
from visit_counter.shards.redis.store import RedisStore
from visit_counter.shards.ring import PARTITIONS, partition_of

if TYPE_CHECKING:
    from visit_counter.config.settings import Settings, Shard
    from visit_counter.runtime.service import Service
    from visit_counter.shards.router import ShardedStore


def location(store: ShardedStore, page: str) -> dict[str, Any]:
    """Return where a page belongs."""
    partition = partition_of(page)
    return {"page": page, "partition": partition, "shard": store.shard_of(partition)}


def urls(settings: Settings) -> list[dict[str, Any]]:
    """Return each shard's url with its password. Raises EmbeddedError where there is none yet."""
    return [{"shard": shard.name, "url": _url_with_password(shard)} for shard in settings.shards]


def _url_with_password(shard: Shard) -> str:
    if not shard.password_file:
        return shard.url
    scheme, _, address = shard.url.partition("://")
    return f"{scheme}://default:{read_password(Path(shard.password_file))}@{address}"


def shards(service: Service) -> list[dict[str, Any]]:
    """Return a row for each shard; for each server of a cluster. `warnings` and `error` are for below a table.

    `since_seconds`: how long a server has been up, or how long flushes have not reached it.
    """
    if service.store is None:
        return []
    owned: dict[str, list[int]] = {}
    with suppress(StoreError):
        service.store.load_shard_map()
    for partition in range(PARTITIONS):
        owned.setdefault(service.store.shard_of(partition), []).append(partition)
    shard_map = service.store.shard_map
    # While partitions are being moved, this process does not know where each of them is.
    strays = shard_map is not None and not shard_map.next and shard_map.shards.keys() == service.store.stores.keys()
    pending, state, writer = _pending_by_shard(service)
    rows = []
    for shard in service.settings.shards:
        store = service.store.stores[shard.name]
        trouble = [f"the last flush failed: {state.trouble[shard.name]}"] if shard.name in state.trouble else []
        trouble += [replica_complaint(*found) for found in state.replicas_away() if found[0] == shard.name]
        if isinstance(store, RedisStore | ClusterStore):
            mine = owned.get(shard.name, [])
            servers = store.status(writer, mine, strays=strays)
            if shard.name in service.store.mistaken:
                servers = [ServerStatus(shard.address, partitions=len(mine), error=service.store.mistaken[shard.name])]
            for number, server in enumerate(servers):
                row = _row(shard.name, server, state.down.get(shard.name))
                # A visit waits for a cluster as a whole: its partitions may be anywhere when they are flushed.
                rows.append(
                    row | {"pending_visits": pending[shard.name] if number == 0 else 0} | _warnings(server, trouble)
                )
    return rows


def _row(name: str, server: ServerStatus, unreached_since: float | None) -> dict[str, Any]:
    said = server.said
    unreached = max(0, round(time.time() - unreached_since)) if unreached_since else None
    return {
        "shard": name,
        "address": server.address,
        "up": server.up,
        "since_seconds": said.uptime_seconds if said else unreached,
        "server": f"{said.server} {said.version}" if said else None,
        "role": said.role if said else None,
        "appendonly": said.appendonly if said else None,
        "appendfsync": said.appendfsync if said else None,
        "maxmemory_policy": said.maxmemory_policy if said else None,
        "partitions": server.partitions,
        "share": f"{100 * server.partitions / PARTITIONS:.1f}%",
        "pages": server.pages,
        "memory_bytes": said.memory_bytes if said else None,
    }


def _warnings(server: ServerStatus, trouble: list[str]) -> dict[str, Any]:
    warnings = [*server.warnings, *trouble]
    return {"safe": None if server.said is None else not warnings, "warnings": warnings, "error": server.error}


def _pending_by_shard(service: Service) -> tuple[Counter[str], Checkpoint, str]:
    """Return the visits that wait for each shard, what the flushes know, and the writer's id."""
    buffer, store = service.buffer, service.store
    pending: Counter[str] = Counter()
    if buffer is None or store is None:
        return pending, Checkpoint(), ""
    with buffer.lock:
        buffer.catch_up()
        for page, visits, last in buffer.pending_pages():
            partition = partition_of(page)
            if segment_of(buffer.state.confirmed.get(partition, NO_WATERMARK)) < last:
                pending[store.shard_of(partition)] += visits
        state = Checkpoint.load(buffer.journal.state_path)
    return pending, state, buffer.writer


def rebalance_note(service: Service) -> str:
    """Return what a person should know about shards whose partitions are not where the list wants them, or ""."""
    store = service.store
    if store is None or store.shard_map is None:
        return ""
    shard_map = store.shard_map
    if shard_map.shards.keys() == store.stores.keys() and not shard_map.next:
        return ""
    return (
        f"the counts are on {', '.join(sorted(shard_map.everyone))}; `flask shards rebalance` brings them where "
        "VISITS_SHARDS wants them"
    )


def replicas(service: Service) -> list[dict[str, Any]]:
    """Return a row for each replica that this host's flushes wait for, or did until a person gave it up."""
    if service.buffer is None:
        return []
    now = time.time()
    return [
        {
            "shard": shard,
            "replica": name,
            "primary": replica.primary or shard,
            "away_seconds": max(0, round(now - replica.away_since)) if replica.away_since else None,
            "given_up": replica.given_up,
        }
        for shard, known in Checkpoint.load(service.buffer.journal.state_path).replicas.items()
        for name, replica in known.items()
    ]


def give_up_replica(service: Service, address: str) -> bool:
    """Stop waiting for a replica; tell whether there is one of this address. Raises OSError."""
    if service.buffer is None:
        return False
    journal_ = service.buffer.journal
    # The flush has its own view of the state until it is saved.
    with journal_.flush_lock(wait=True):
        state = Checkpoint.load(journal_.state_path)
        known = [replicas for replicas in state.replicas.values() if address in replicas]
        for each in known:
            each[address] = each[address]._replace(given_up=True)
        if known:
            state.save(journal_.state_path)
    return bool(known)


def flush_troubles(service: Service) -> list[str]:
    """Return why the last flush of this host could not bring a shard everything.

    Such a shard may refuse the partitions that a rebalance brings, too.
    """
    if service.buffer is None:
        return []
    return list(Checkpoint.load(service.buffer.journal.state_path).trouble.values())


def rebalance_of(settings: Settings, former: str | None) -> Rebalance:
    """Return the rebalance to the configured shards; `former` is a list in the format of VISITS_SHARDS."""
    mistakes: list[str] = []
    shards = parse_shards(former, mistakes) or []
    if mistakes:
        raise RebalanceError("; ".join(mistakes).replace("VISITS_SHARDS", "--from"))
    stores = gather_stores(settings.shards, shards)
    return Rebalance([shard.name for shard in settings.shards], stores, former=[shard.name for shard in shards])


def journal(service: Service) -> dict[str, Any] | None:
    """Return what the journal holds, or None where the profile has none."""
    buffer, store = service.buffer, service.store
    if buffer is None or store is None:
        return None
    now = time.time()
    with buffer.lock:
        buffer.catch_up()
        state, pending = Checkpoint.load(buffer.journal.state_path), buffer.pending_totals()
        segments = [
            {
                "segment": segment.name,
                "bytes": buffer.journal.size_of(segment),
                "age_seconds": max(0, round(now - buffer.journal.written_at(segment, now))),
                "state": "included"
                if segment.last <= state.floor
                else "waiting"
                if buffer.is_sealed(segment)
                else "current",
            }
            for segment in buffer.journal.segments()
        ]
    waiting = [row["age_seconds"] for row in segments if row["state"] != "included"] if pending[0] else []
    last, signed = state.last_flush, acknowledged(buffer.journal.path)
    return {
        "writer": buffer.writer,
        "directory": str(buffer.journal.path),
        "bytes": buffer.journal.size_bytes(),
        "pending_visits": pending[0],
        "pending_pages": pending[1],
        "oldest_pending_seconds": max(waiting, default=None),
        "included_to": state.floor,
        "last_flush_age_seconds": max(0, round(now - state.complete_at)) if state.complete_at else None,
        "last_flush_visits": last.visits if last else None,
        "last_flush_seconds": last.seconds if last else None,
        "last_flush_error": last.error if last else None,
        "segments": segments,
        "watermarks": _watermarks(service, state.confirmed),
        "damage": state.damage,
        "acknowledged": {note: signed[note] for note in state.damage if note in signed},
    }


def acknowledge_damage(service: Service) -> None:
    """Remember that the person who runs this has seen the damage there is. Raises OSError."""
    if service.buffer is not None:
        path = service.buffer.journal.path
        acknowledge(path, Checkpoint.load(service.buffer.journal.state_path).damage, _user())


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"user {os.getuid()}"


def _watermarks(service: Service, confirmed: dict[int, str]) -> list[dict[str, Any]]:
    """Return, for each shard, between which segments its partitions' confirmed watermarks lie."""
    if service.store is None:
        return []
    numbers: dict[str, list[int]] = {name: [] for name in service.store.stores}
    for partition, token in confirmed.items():
        numbers.setdefault(service.store.shard_of(partition), []).append(segment_of(token))
    return [
        {
            "shard": name,
            "partitions_written": len(found),
            "lowest_watermark": min(found, default=0),
            "highest_watermark": max(found, default=0),
        }
        for name, found in numbers.items()
    ]
