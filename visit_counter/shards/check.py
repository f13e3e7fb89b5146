"""Asks a shard, before the service starts, whether it is one, and whether its settings keep our promises."""

from __future__ import annotations

import ssl
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from redis.exceptions import AuthenticationError, BusyLoadingError, InvalidResponse, RedisError, ResponseError

from visit_counter.config.shard_urls import TLS_FILES
from visit_counter.errors import StoreRefusedError, StoreUnavailableError
from visit_counter.shards.factory import make_store
from visit_counter.shards.redis.exchange import pack
from visit_counter.shards.redis.pools import target_of
from visit_counter.shards.redis.shapes import is_pong, is_text
from visit_counter.shards.redis.wire import Wire
from visit_counter.shards.ring import PARTITIONS

if TYPE_CHECKING:
    from visit_counter.config.settings import Shard

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
        return _check_server(shard)
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
        return [f"{row.address}: {warning}" for row in store.status("", range(PARTITIONS)) for warning in row.warnings]


def _check_server(shard: Shard) -> str | None:
    with closing(Wire(shard, TIMEOUT_SECONDS, TIMEOUT_SECONDS)) as wire:
        replies = wire.ask([pack(b"PING"), pack(b"INFO", b"cluster")], [is_pong, is_text])
    error = next((reply for reply in replies if isinstance(reply, RedisError)), None)
    if error is None:
        if b"cluster_enabled:1" in replies[1]:
            raise StoreRefusedError(shard.name, f"{shard.address} is of a Redis Cluster; allowed: redis+cluster://")
        return None
    if isinstance(error, InvalidResponse):
        raise StoreRefusedError(shard.name, f"{shard.address} is not Redis or Valkey")
    if isinstance(error, AuthenticationError | ResponseError):
        raise StoreRefusedError(shard.name, f"{shard.address} refuses: {error}")
    if isinstance(error, BusyLoadingError):
        return f"{shard.address} is still loading its data"
    if certificate := _certificate_error(error):
        raise StoreRefusedError(shard.name, f"{shard.address}: {certificate}")
    return f"{shard.address} does not answer: {error}"


def _certificate_error(error: BaseException | None) -> str | None:
    """Return what is wrong with the server's certificate, if that is what an error comes from."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"its certificate does not verify: {error.verify_message}"
        error = error.__cause__ or error.__context__
    return None
