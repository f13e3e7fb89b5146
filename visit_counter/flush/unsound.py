"""What a flush does with partitions and pages in which a person or another program has written.

It stays the trouble of that partition or page: it is told, and everything else is flushed and forgotten as always.

- A watermark that no flush wrote: the partition is taken to include what it had confirmed before, and its watermark is
  written anew, with the visits behind it. A shard may fall back to the strange one: so it is remembered.
- Something else in the place of a partition: its visits wait in the journal.
- A count that is no number: the script sets the visits aside, in the partition (`shards.redis.applying`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from visit_counter.shards.contract import NO_WATERMARK, is_token, segment_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from visit_counter.journal.checkpoint import Checkpoint

_SHOWN = 40


def strange_ones(found: dict[int, str]) -> dict[int, str]:
    """Return the partitions whose watermark no flush wrote, or that are none, and what was found there."""
    return {partition: watermark for partition, watermark in found.items() if not is_token(watermark)}


def take_for_confirmed(state: Checkpoint, partition: int, watermark: str) -> int:
    """Return the segment that a strange watermark is taken for: one answer as long as the shard may fall back to it."""
    known = state.strange.get(partition)
    if known is not None and known[0] == watermark:
        return known[1]
    number = segment_of(state.confirmed.get(partition, NO_WATERMARK))
    state.strange[partition] = (watermark, number)
    return number


def describe_none(partition: int, shard: str) -> str:
    """Return what is told of something else in the place of a partition."""
    return f"{shard}: visits:{{{partition}}} is no partition; its visits wait in the journal until it is one"


def describe_strange(partition: int, shard: str, watermark: str, number: int) -> str:
    """Return what is told of a watermark that no flush wrote."""
    return (
        f"{shard}: partition {partition} has the watermark {watermark[:_SHOWN]!a}, which no flush wrote; it is taken "
        f"to include segment {number}, as it was confirmed"
    )


def describe_aside(partition: int, shard: str, pages: Sequence[str]) -> str:
    """Return what is told of pages whose counts are no numbers."""
    shown = ", ".join(f"{page!r}" for page in pages[:5]) + (f" and {len(pages) - 5} more" if len(pages) > 5 else "")
    return (
        f"{shard}: partition {partition} holds no count for {shown}; visits are set aside in the partition, and "
        "counted with the next one after the count is mended"
    )
