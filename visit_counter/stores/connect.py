"""Asks a shard, before the service starts, whether it is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from visit_counter.errors import StoreRefusedError

if TYPE_CHECKING:
    from visit_counter.settings import Shard

TIMEOUT_SECONDS = 2.0


def check_shard(shard: Shard) -> str | None:
    """Return None if the shard answers, or why it does not now; the service can start without it.

    Raises StoreRefusedError where waiting does not help: a wrong password, or no Redis at all. Of the hosts of a
    sentinel or cluster url, the first one that says anything counts.
    """
    reason = None
    for url in _urls(shard):
        reason = _check(shard, url)
        if reason is None:
            break
    return reason


def _check(shard: Shard, url: str) -> str | None:
    client: Any = redis.Redis.from_url(
        url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS, retry=Retry(NoBackoff(), 0)
    )
    with client:
        try:
            client.ping()
        except redis.InvalidResponse:
            raise StoreRefusedError(shard.name, f"{shard.address} is not Redis or Valkey") from None
        except (redis.AuthenticationError, redis.ResponseError) as error:
            raise StoreRefusedError(shard.name, f"{shard.address} refuses: {error}") from None
        except redis.BusyLoadingError:
            return f"{shard.address} is still loading its data"
        except redis.RedisError as error:
            return f"{shard.address} does not answer: {error}"
    return None


def _urls(shard: Shard) -> list[str]:
    """Return a plain url for each host."""
    scheme, _, rest = shard.url.partition("://")
    if scheme in {"redis", "rediss"}:
        return [shard.url]
    credentials, at, _ = rest.rpartition("@")
    # The password of a sentinel url is that of the servers behind it.
    login = f"{credentials}{at}" if scheme == "redis+cluster" else ""
    return [f"redis://{login}{host}" for host in shard.address.split(",")]
