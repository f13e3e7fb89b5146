"""What a flush does with partitions and pages that a person or another program has changed.

It reports each of them as damage. All other partitions and pages are flushed as always.

- A watermark that no flush wrote: the flush assumes that the partition includes the segments that it had confirmed
  before, and writes a watermark again, with the visits behind these segments. A shard may come back with the strange
  watermark, so the state keeps it.
- A key that holds something other than a partition: the partition's visits wait in the journal.
- A count that is not a number: the script sets the visits aside, in the partition (`shards.redis.applying`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from visit_counter.shards.contract import NO_WATERMARK, is_token, segment_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from visit_counter.journal.checkpoint import Checkpoint

_SHOWN = 40


def strange_ones(found: dict[int, str]) -> dict[int, str]:
    """Return the watermarks that no flush wrote, by partition; NOT_A_PARTITION stands for a key with something else."""
    return {partition: watermark for partition, watermark in found.items() if not is_token(watermark)}


def take_for_confirmed(state: Checkpoint, partition: int, watermark: str) -> int:
    """Return the segment that a strange watermark is taken to mean.

    The answer is the same for as long as the shard may come back with this watermark.
    """
    known = state.strange.get(partition)
    if known is not None and known[0] == watermark:
        return known[1]
    number = segment_of(state.confirmed.get(partition, NO_WATERMARK))
    state.strange[partition] = (watermark, number)
    return number


def describe_none(partition: int, shard: str) -> str:
    """Return the note on a key that holds something other than a partition."""
    return f"{shard}: visits:{{{partition}}} is no partition; its visits wait in the journal until it is one"


def describe_strange(partition: int, shard: str, watermark: str, number: int) -> str:
    """Return the note on a watermark that no flush wrote."""
    return (
        f"{shard}: partition {partition} has the watermark {watermark[:_SHOWN]!a}, which no flush wrote; it is taken "
        f"to include segment {number}, as it was confirmed"
    )


def describe_aside(partition: int, shard: str, pages: Sequence[str]) -> str:
    """Return the note on pages whose counts are not numbers."""
    shown = ", ".join(f"{page!r}" for page in pages[:5]) + (f" and {len(pages) - 5} more" if len(pages) > 5 else "")
    return (
        f"{shard}: partition {partition} holds no count for {shown}; visits are set aside in the partition, and "
        "counted with the next one after the count is mended"
    )
