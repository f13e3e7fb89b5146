"""What kind of server a shard is, and whether its settings keep our promises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Description:
    """A server, as `flask shards status` shows it. A text is "unknown" where the server does not say or may not."""

    server: str  # redis or valkey
    version: str
    role: str  # master or slave, in the server's words
    appendonly: str  # yes or no
    appendfsync: str  # always, everysec or no
    maxmemory_policy: str
    memory_bytes: int
    uptime_seconds: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class ServerStatus:
    """A server as it was just found: `said` is what it says of itself, None if it is down for the reason `error`."""

    address: str
    partitions: int
    up: bool = False
    pages: int | None = None
    said: Description | None = None
    warnings: tuple[str, ...] = ()
    error: str = ""


def description_of(info: Mapping[str, str]) -> Description:
    """Make sense of what a server says about itself: the lines of INFO, and settings by their own names."""
    server = "valkey" if "valkey_version" in info else "redis"
    return Description(
        server=server,
        version=info.get(f"{server}_version", UNKNOWN),
        role=info.get("role", UNKNOWN),
        appendonly=info.get("appendonly") or {"1": "yes", "0": "no"}.get(info.get("aof_enabled", ""), UNKNOWN),
        appendfsync=info.get("appendfsync", UNKNOWN),
        maxmemory_policy=info.get("maxmemory_policy", UNKNOWN),
        memory_bytes=_number(info.get("used_memory")),
        uptime_seconds=_number(info.get("uptime_in_seconds")),
        warnings=tuple(_warnings(info)),
    )


def _number(text: str | None) -> int:
    """Return the number that a server says; 0 where it says none."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 20 else 0


def read_info(replies: Sequence[Any]) -> dict[str, str]:
    """Flatten the replies to INFO and CONFIG GET; one that was refused (an ACL, a hosted server) tells nothing."""
    said: dict[str, str] = {}
    for reply in replies:
        if isinstance(reply, RedisError):
            continue
        if isinstance(reply, bytes):
            pairs = (line.partition(":") for line in reply.decode(errors="replace").splitlines() if ":" in line)
            said.update({name: value for name, _, value in pairs})
        else:
            texts = [text.decode(errors="replace") for text in reply]
            said.update(zip(texts[::2], texts[1::2], strict=True))
    return said


def _warnings(info: Mapping[str, str]) -> Iterable[str]:
    if info.get("role") == "slave":
        yield "it is a replica, which refuses visits; give the address of its primary"
    if info.get("aof_enabled") == "0":
        yield "appendonly is no: a crash loses counts; set it to yes"
    elif info.get("appendfsync") == "no":
        yield "appendfsync is no: nobody knows when a count is on disk; set it to always or everysec"
    policy = info.get("maxmemory_policy", "noeviction")
    # volatile-* evicts keys that expire only, and ours never do.
    if policy.startswith("allkeys-"):
        yield f"maxmemory-policy is {policy}: a full server throws counts away; set it to noeviction"
    if info.get("cluster_enabled") == "1" and info.get("cluster-require-full-coverage") == "yes":
        yield "cluster-require-full-coverage is yes: one primary that is lost stops all of them; set it to no"
    if info.get("aof_last_write_status") == "err":
        yield "the last write to the append-only file failed: it refuses visits until its disk is repaired"
