"""What the commands show, as data: rows and fields in the order they are printed."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from visit_counter.errors import RebalanceError, StoreError
from visit_counter.rebalance import Rebalance, gather_stores
from visit_counter.ring import PARTITIONS, partition_of
from visit_counter.shard_list import parse_shards
from visit_counter.state import State
from visit_counter.stores.base import segment_of

if TYPE_CHECKING:
    from visit_counter.service import Service
    from visit_counter.settings import Settings
    from visit_counter.stores.sharded import ShardedStore


def location(store: ShardedStore, page: str) -> dict[str, Any]:
    """Return where a page belongs."""
    partition = partition_of(page)
    return {"page": page, "partition": partition, "shard": store.shard_of(partition)}


def shards(service: Service) -> list[dict[str, Any]]:
    """Return a row for each shard."""
    if service.store is None:
        return []
    with suppress(StoreError):
        service.store.settle()
    owned = Counter(service.store.shard_of(partition) for partition in range(PARTITIONS))
    return [
        {
            "shard": shard.name,
            "address": shard.address,
            "up": service.store.stores[shard.name].ping(),
            "partitions": owned[shard.name],
            "share": f"{100 * owned[shard.name] / PARTITIONS:.1f}%",
        }
        for shard in service.settings.shards
    ]


def rebalance_note(service: Service) -> str:
    """Return what a person should know about shards whose partitions are not where the list wants them, or ""."""
    agreed = service.store.agreed if service.store else None
    if agreed is None or (agreed.shards.keys() == service.store.stores.keys() and not agreed.next):  # type: ignore[union-attr]
        return ""
    return f"the counts are on {', '.join(sorted(agreed.everyone))}; flask shards rebalance moves or finishes"


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
        state, pending = State.load(buffer.journal.state_path), buffer.pending_totals()
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
    last = state.last_flush
    return {
        "writer": buffer.writer,
        "directory": str(buffer.journal.path),
        "bytes": buffer.journal.size_bytes(),
        "pending_visits": pending[0],
        "pending_pages": pending[1],
        "oldest_pending_seconds": max(waiting, default=None),
        "included_to": state.floor,
        "last_flush_age_seconds": max(0, round(now - last.at)) if last else None,
        "last_flush_visits": last.visits if last else None,
        "last_flush_seconds": last.seconds if last else None,
        "last_flush_error": last.error if last else None,
        "segments": segments,
        "watermarks": _watermarks(service, state.confirmed),
        "damage": state.damage,
    }


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
