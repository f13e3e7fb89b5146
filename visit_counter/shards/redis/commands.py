"""The commands that read and change a partition on a server, and what their replies mean.

A partition is the hash `visits:{17}`. A page's field is the page; a writer's watermark is in the field TAB + writer.
A page contains no control character, so the two can never be the same field, and in a terminal they look different.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from visit_counter.errors import StoreRefusedError
from visit_counter.shards.contract import Look, Stored, is_token
from visit_counter.shards.redis.exchange import pack
from visit_counter.shards.redis.scripts import load_script
from visit_counter.shards.redis.shapes import values
from visit_counter.shards.ring import partition_of
from visit_counter.shards.shard_map import KEY as SHARD_MAP_KEY

if TYPE_CHECKING:
    from collections.abc import Sequence

# How many digits the largest count has, which is 2^63 - 1.
_COUNT_DIGITS = 19
_OFFER = load_script(__package__, "offer")
# The field of a partition's losses (see `Store.raise_losses`); no writer's id is "losses".
LOSSES_FIELD = b"\tlosses"
# The field of a partition's stamp (see `shards.stamps`), which `apply.lua` sets.
STAMP_FIELD = b"\tstamp"
# The shapes of the replies to `read_command` and `look_command`.
STORED, LOOK = values(4), values(3)


def partition_key(partition: int) -> bytes:
    """Return the key of a partition; keys with the same number in braces are in the same slot of a Redis Cluster."""
    return b"visits:{%d}" % partition


def watermark_field(writer: str) -> bytes:
    """Return the field of a writer's watermark."""
    return b"\t" + writer.encode()


def add_command(page: str, visits: int) -> bytes:
    """Return the packed command that counts visits at once and replies with the count."""
    return pack(b"HINCRBY", partition_key(partition_of(page)), page.encode(), b"%d" % visits)


def read_command(writer: str, page: str) -> bytes:
    """Return the packed command whose reply `stored_of` understands."""
    return pack(b"HMGET", partition_key(partition_of(page)), *stored_fields(writer, page))


def look_command(writer: str, partition: int) -> bytes:
    """Return the packed command whose reply `look_of` understands."""
    return pack(b"HMGET", partition_key(partition), *look_fields(writer))


def look_fields(writer: str) -> tuple[bytes, ...]:
    """Return the fields that show whether a partition has changed."""
    return watermark_field(writer), LOSSES_FIELD, STAMP_FIELD


def stored_fields(writer: str, page: str) -> tuple[bytes, ...]:
    """Return the fields for a page's stored count and its partition's state."""
    return page.encode(), *look_fields(writer)


def losses_command(partition: int, by: int) -> bytes:
    """Return the packed command that raises the losses of a partition."""
    return pack(b"HINCRBY", partition_key(partition), LOSSES_FIELD, b"%d" % by)


def watermark_command(writer: str, partition: int) -> bytes:
    """Return the packed command that replies with a writer's watermark token, or nothing."""
    return pack(b"HGET", partition_key(partition), watermark_field(writer))


def stored_of(shard: str, reply: Sequence[bytes | None]) -> Stored:
    """Return the stored count in a reply; raises StoreRefusedError if the reply holds no count or no watermark."""
    count, *others = reply
    return Stored(_number(shard, count), *look_of(shard, others))


def look_of(shard: str, reply: Sequence[bytes | None]) -> Look:
    """Return the state of a partition in a reply; raises StoreRefusedError as `stored_of` does."""
    watermark, losses, stamp = reply
    mark = text_of(watermark or b"")
    if not is_token(mark):
        raise StoreRefusedError(shard, "the partition has a watermark that no flush wrote; the next flush repairs it")
    return Look(mark, _number(shard, losses), text_of(stamp or b""))


def look_or_none(shard: str, reply: Any) -> Look | None:
    """Return the state of a partition in a reply; None for an error, and for a text that no flush wrote."""
    if isinstance(reply, RedisError):
        return None
    try:
        return look_of(shard, reply)
    except StoreRefusedError:
        return None


def _number(shard: str, value: bytes | None) -> int:
    if value is None:
        return 0
    if not (value.isdigit() and len(value) <= _COUNT_DIGITS):
        raise StoreRefusedError(shard, "the partition holds a value that is not a count")
    return int(value)


def offer_command(text: str) -> tuple[bytes, ...]:
    """Return the command, not packed, that stores a shard map unless the server has a newer one."""
    return (b"EVAL", _OFFER, b"1", SHARD_MAP_KEY, text.encode())


def text_of(watermark: bytes) -> str:
    """Return a watermark as text; `bytes_of` returns the same bytes again, also if they are not UTF-8."""
    return watermark.decode(errors="surrogateescape")


def bytes_of(watermark: str) -> bytes:
    """Return the bytes of a text from `text_of`."""
    return watermark.encode(errors="surrogateescape")
