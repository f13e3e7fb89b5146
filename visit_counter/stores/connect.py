"""Asks a shard, before the service starts, whether it is one, and whether its settings keep our promises."""

from __future__ import annotations

import ssl
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from visit_counter.errors import StoreRefusedError, StoreUnavailableError
from visit_counter.ring import PARTITIONS
from visit_counter.shard_list import TLS_FILES
from visit_counter.stores.factory import make_store
from visit_counter.stores.pools import server_url, target_of

if TYPE_CHECKING:
    from visit_counter.settings import Shard

TIMEOUT_SECONDS = 2.0


def check_shard(shard: Shard) -> str | None:
    """Return None if the shard answers, or why it does not now; the service can start without it.

    Raises StoreRefusedError where waiting does not help: a wrong password, a certificate that does not verify, no Redis
    at all.
    """
    target = target_of(shard)
    for name in TLS_FILES:
        if path := target.options.get(name):
            try:
                Path(path).read_bytes()
            except OSError as error:
                raise StoreRefusedError(shard.name, f"{name} {path} cannot be read: {error.strerror}") from None
    if target.scheme in ("redis", "rediss"):
        return _check_server(shard, server_url(target, *target.hosts[0]))
    with closing(
        make_store(shard, connect_seconds=TIMEOUT_SECONDS, read_seconds=TIMEOUT_SECONDS, apply_seconds=TIMEOUT_SECONDS)
    ) as store:
        try:
            store.watermarks("", [0])
        except StoreRefusedError as error:
            raise StoreRefusedError(shard.name, f"{shard.address} refuses: {error.reason}") from None
        except StoreUnavailableError as error:
            return f"{shard.address} does not answer: {error.reason}"
    return None


def warnings_of(shard: Shard) -> list[str]:
    """Return what puts counts at risk on a shard's servers, each with its address; nothing of a server that is down."""
    with closing(make_store(shard, apply_seconds=TIMEOUT_SECONDS)) as store:
        return [f"{row.address}: {warning}" for row in store.look("", range(PARTITIONS)) for warning in row.warnings]


def _check_server(shard: Shard, url: str) -> str | None:
    client: Any = redis.Redis.from_url(
        url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS, retry=Retry(NoBackoff(), 0)
    )
    with client:
        try:
            client.ping()
            if client.info("cluster").get("cluster_enabled"):
                raise StoreRefusedError(shard.name, f"{shard.address} is of a Redis Cluster; allowed: redis+cluster://")
        except redis.InvalidResponse:
            raise StoreRefusedError(shard.name, f"{shard.address} is not Redis or Valkey") from None
        except (redis.AuthenticationError, redis.ResponseError) as error:
            raise StoreRefusedError(shard.name, f"{shard.address} refuses: {error}") from None
        except redis.BusyLoadingError:
            return f"{shard.address} is still loading its data"
        except redis.RedisError as error:
            if certificate := _certificate_error(error):
                raise StoreRefusedError(shard.name, f"{shard.address}: {certificate}") from None
            return f"{shard.address} does not answer: {error}"
    return None


def _certificate_error(error: BaseException | None) -> str | None:
    """Return what is wrong with the server's certificate, if that is what an error comes from."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"its certificate does not verify: {error.verify_message}"
        error = error.__cause__ or error.__context__
    return None
