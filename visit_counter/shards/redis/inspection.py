"""Inspecting what servers hold: how many pages in which partitions, and what should not be there."""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import RedisError

from visit_counter.shards.redis.commands import LOSSES_FIELD, STAMP_FIELD, partition_key, watermark_field
from visit_counter.shards.redis.exchange import pack
from visit_counter.shards.redis.shapes import are_texts, is_number, values
from visit_counter.shards.redis.wire import explain, is_down, is_elsewhere
from visit_counter.shards.ring import PARTITIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from visit_counter.shards.redis.shapes import Shape

    # Sends each partition's command to the server that has it; returns for each its reply, or the RedisError.
    Ask = Callable[[Sequence[tuple[int, bytes]], Iterable[Shape]], list[Any]]

# How many partitions, with how many fields at most, are searched for the names of writers.
_SAMPLE_PARTITIONS, _SAMPLE_FIELDS = 16, 1000


class Held(NamedTuple):
    """What was found in partitions.

    `pages`: their number by partition. `errors`: why the pages of other partitions cannot be counted. `strays`:
    partitions that were not expected here.
    """

    pages: Mapping[int, int]
    errors: Mapping[int, RedisError]
    strays: Sequence[int] = ()

    def warnings(self, shard: str) -> list[str]:
        """Return what a person should know about it."""
        found = []
        if self.errors:
            at, error = next(iter(self.errors.items()))
            reason = explain(shard, error).reason
            found.append(f"{len(self.errors)} partitions cannot be read, e.g. {at}: {reason}")
        if self.strays:
            found.append(
                f"it holds counts of {len(self.strays)} partitions that another shard has, e.g. {self.strays[0]}: "
                "they are not read; was its address once another shard's?"
            )
        return found


def count_pages_of(ask: Ask, writer: str, partitions: Sequence[int], *, strays: bool = False) -> Held:
    """Count the pages of partitions: all fields except the watermarks. Raises RedisError if no server answers.

    The names of the writers are read from a few small partitions. Each partition with a watermark of a writer that has
    none in these is counted with one page too many. A partition that has moved away counts as empty. With `strays`, the
    partitions that are not named are searched for counts, too.
    """
    sizes, errors = _sizes(ask, partitions)
    if errors and not sizes:
        raise next(iter(errors.values()))
    marks = _marks(ask, writer, sizes)
    found: list[int] = []
    if strays:
        wanted = set(partitions)
        others, _ = _sizes(ask, [at for at in range(PARTITIONS) if at not in wanted])
        found = [at for at, size in others.items() if size]
    return Held({at: size - marks.get(at, 0) for at, size in sizes.items()}, errors, found)


def _sizes(ask: Ask, partitions: Sequence[int]) -> tuple[dict[int, int], dict[int, RedisError]]:
    """Return the number of fields of each partition, 0 for one that has moved; and the errors of the others."""
    replies = ask([(at, pack(b"HLEN", partition_key(at))) for at in partitions], repeat(is_number))
    if replies and all(map(is_down, replies)):
        raise replies[0]
    sizes = {
        at: 0 if is_elsewhere(reply) else reply
        for at, reply in zip(partitions, replies, strict=True)
        if is_elsewhere(reply) or not isinstance(reply, RedisError)
    }
    return sizes, {at: reply for at, reply in zip(partitions, replies, strict=True) if at not in sizes}


def _marks(ask: Ask, writer: str, sizes: Mapping[int, int]) -> dict[int, int]:
    """Return how many watermarks each partition has."""
    small = sorted((size, at) for at, size in sizes.items() if 0 < size <= _SAMPLE_FIELDS)[:_SAMPLE_PARTITIONS]
    writers = {watermark_field(writer), LOSSES_FIELD, STAMP_FIELD}
    for fields in ask([(at, pack(b"HKEYS", partition_key(at))) for _, at in small], repeat(are_texts)):
        if not isinstance(fields, RedisError):
            writers |= {field for field in fields if field.startswith(b"\t")}
    filled = [at for at, size in sizes.items() if size]
    commands = [(at, pack(b"HMGET", partition_key(at), *sorted(writers))) for at in filled]
    replies = ask(commands, repeat(values(len(writers))))
    return {
        at: sum(mark is not None for mark in reply)
        for at, reply in zip(filled, replies, strict=True)
        if not isinstance(reply, RedisError)
    }
