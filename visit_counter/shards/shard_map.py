"""The shard map: which shards hold the partitions, kept in the shards themselves. Pure.

The configured list of shards says where servers are and what is wanted; it cannot say where the counts are. So every
shard keeps, under the key `visits:{0}:topology`, a version number and the names the ring is made of:

    3 {"id":"9f1c02ab","partitions":4096,"shards":{"a":"redis://10.0.0.5:7070"},"next":{"b":"redis://10.0.0.6:7070"}}

`shards`: the owner of a partition is its owner on the ring of these names, or, if that one says so, the shard it
has moved to (`rebalance.moving`). `next`: shards that a rebalance under way moves partitions to; empty otherwise. The
addresses are those of the host that wrote them, without passwords; a rebalance finds a removed shard by them. `id`
tells one installation's servers from another's.

The map with the highest version counts. To use an older one does no harm: in the place of each partition that has
moved, a shard keeps a string that says where it is. But a shard that never had a partition must never be asked for it,
because it would say 0. So no partition is read or written before the shard map is known.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from visit_counter.errors import ShardMapError
from visit_counter.shards.ring import PARTITIONS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# With a hash tag, so that a cluster finds it as it finds partition 0.
KEY = b"visits:{0}:topology"


@dataclass(frozen=True)
class ShardMap:
    """The addresses of shards by name: those the ring is made of, and those partitions are being moved to."""

    version: int
    shards: Mapping[str, str]
    next: Mapping[str, str] = field(default_factory=dict)
    id: str = field(default_factory=lambda: secrets.token_hex(4))

    def to_text(self) -> str:
        """Return the text that is kept in the shards."""
        body = {"id": self.id, "partitions": PARTITIONS, "shards": dict(self.shards), "next": dict(self.next)}
        return f"{self.version} {json.dumps(body, separators=(',', ':'), sort_keys=True)}"

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read what a shard keeps. Raises ShardMapError."""
        version, _, body = text.partition(" ")
        try:
            raw: dict[str, Any] = json.loads(body)
            found = cls(int(version), dict(raw["shards"]), dict(raw["next"]), str(raw["id"]))
        except (ValueError, KeyError, TypeError):
            raise ShardMapError(f"visits:{{0}}:topology cannot be read: {text[:80]!r}") from None
        if raw.get("partitions") != PARTITIONS:
            raise ShardMapError(f"the counts are in {raw.get('partitions')} partitions; this version uses {PARTITIONS}")
        return found

    @property
    def everyone(self) -> dict[str, str]:
        """The addresses of all shards that may hold a partition."""
        return {**self.shards, **self.next}


def version_of(text: str) -> int:
    """Return the version of a shard map's text; 0 for none."""
    return int(text.partition(" ")[0] or 0)


def newest(texts: Mapping[str, str]) -> ShardMap | None:
    """Return the shard map to work by, given what each shard keeps ("" for none). Raises ShardMapError."""
    found = {name: ShardMap.from_text(text) for name, text in texts.items() if text}
    if not found:
        return None
    name, best = max(found.items(), key=lambda item: item[1].version)
    for other, shard_map in found.items():
        if shard_map.id != best.id:
            raise ShardMapError(
                f"{name} and {other} hold counts of different installations "
                f"({_listed(best.shards)}, and {_listed(shard_map.shards)}); see VISITS_SHARDS"
            )
        if shard_map.version == best.version and shard_map != best:
            raise ShardMapError(
                f"{name} and {other} disagree about the shards: {_listed(best.shards)}, or {_listed(shard_map.shards)}"
            )
    return best


def public_url(url: str) -> str:
    """Return a shard's url without user, password and options."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{re.sub(r'[?#].*', '', rest.rpartition('@')[2], flags=re.DOTALL)}"


def _listed(shards: Mapping[str, str] | Sequence[str]) -> str:
    return ", ".join(sorted(shards))
