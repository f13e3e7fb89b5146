"""The one place that knows which store a shard's url asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from visit_counter.stores.cluster import ClusterStore
from visit_counter.stores.pools import CLUSTER
from visit_counter.stores.redis import RedisStore
from visit_counter.stores.sharded import ShardedStore

if TYPE_CHECKING:
    from visit_counter.settings import Settings, Shard
    from visit_counter.stores.redis import Patience


def make_store(shard: Shard, **seconds: Unpack[Patience]) -> RedisStore | ClusterStore:
    """Return the store of a shard, by the scheme of its url; `seconds` are RedisStore's time-outs. Opens nothing."""
    if shard.url.startswith(f"{CLUSTER}://"):
        return ClusterStore(shard, **seconds)
    return RedisStore(shard, **seconds)


def make_sharded(settings: Settings) -> ShardedStore:
    """Return the shards as one store. The profiles before `sharded` count on the first one, whoever else has counts."""
    return ShardedStore([make_store(shard) for shard in settings.shards], shared=settings.profile == "sharded")
