"""Reading fields of partitions of one server, wherever on it they stand: in their own place, or frozen beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from visit_counter.errors import PartitionMovedError, StoreRefusedError, StoreUnavailableError
from visit_counter.shards.rebalance import moving
from visit_counter.shards.redis.commands import partition_key
from visit_counter.shards.redis.exchange import impossible, pack
from visit_counter.shards.redis.shapes import either, is_empty, is_text, sequence, values
from visit_counter.shards.redis.wire import explain, is_elsewhere

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from visit_counter.shards.redis.shapes import Shape

    # Sends packed commands; gives what came for each, its reply of the shape or the RedisError.
    Ask = Callable[[list[bytes], Shape], list[Any]]

Values = list[bytes | None]


def read_fields(
    shard: str, ask: Ask, wanted: Sequence[tuple[int, Sequence[bytes]]], *, strange: Values | None = None
) -> list[Values]:
    """Return the values of fields of partitions, also of one that is frozen here. Raises StoreError.

    `wanted`: partitions, each with the names of its fields, the same number in each. `strange`: what to return where
    something else than a partition is found; if it is None, StoreRefusedError is raised there. Raises
    PartitionMovedError with all partitions that are on other shards now.
    """
    if not wanted:
        return []
    shape = values(len(wanted[0][1]))
    replies = ask([pack(b"HMGET", partition_key(at), *fields) for at, fields in wanted], shape)
    elsewhere = [index for index, reply in enumerate(replies) if is_elsewhere(reply)]
    answers_of(shard, [reply for reply in replies if not is_elsewhere(reply)])
    if not elsewhere:
        return replies
    moved: dict[int, str] = {}
    for index, found in zip(elsewhere, _find(shard, ask, [wanted[index] for index in elsewhere]), strict=True):
        partition = wanted[index][0]
        if found is None:
            if strange is None:
                raise StoreRefusedError(shard, f"WRONGTYPE visits:{{{partition}}} is not a partition")
            replies[index] = strange
        elif isinstance(found, str):
            moved[partition] = found
        else:
            replies[index] = found
    if moved:
        raise PartitionMovedError(shard, moved)
    return replies


def _find(shard: str, ask: Ask, wanted: Sequence[tuple[int, Sequence[bytes]]]) -> list[Values | str | None]:
    """Look for partitions that are not in their own place.

    Return for each the values of its fields if it is frozen here, the name of the shard it has moved to, or None where
    there is something else than a partition. Raises StoreError.
    """
    fields = len(wanted[0][1])
    placed = sequence(is_text, either(values(fields), is_empty))
    replies = ask([pack(*moving.find(*each)) for each in wanted], placed)
    answers_of(shard, [reply for reply in replies if not is_elsewhere(reply)])
    found: list[Values | str | None] = []
    for reply in replies:
        # The key has neither a string nor a hash, so the script was refused, too.
        text, held = (b"?", []) if is_elsewhere(reply) else reply
        place = moving.Place.from_bytes(text)
        if place.kind == "?":
            found.append(None)
        elif place.kind == "moved":
            found.append(place.shard)
        elif len(held) != fields:
            raise StoreUnavailableError(shard, str(impossible(held)))
        else:
            found.append(held)
    return found


def answers_of(shard: str, replies: list[Any]) -> list[Any]:
    """Return the replies if all are; raises StoreError for the first that is an error."""
    for reply in replies:
        if isinstance(reply, RedisError):
            raise explain(shard, reply)
    return replies
