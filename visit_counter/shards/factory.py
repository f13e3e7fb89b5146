"""The one place that knows which store a shard's url asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from visit_counter.shards.cluster.store import ClusterStore
from visit_counter.shards.redis.pools import CLUSTER
from visit_counter.shards.redis.store import RedisStore

if TYPE_CHECKING:
    from visit_counter.config.settings import Shard
    from visit_counter.shards.redis.server import Timeouts


def make_store(shard: Shard, **seconds: Unpack[Timeouts]) -> RedisStore | ClusterStore:
    """Return the store of a shard, by the scheme of its url; `seconds` are RedisServer's time-outs. Opens nothing."""
    if shard.url.startswith(f"{CLUSTER}://"):
        return ClusterStore(shard, **seconds)
    return RedisStore(shard, **seconds)
