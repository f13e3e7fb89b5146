"""The contract of a store: where counts are kept once they are no longer pending.

A store holds partitions. A partition is a fixed slice of all pages (`ring.partition_of`) and is changed and
read atomically. It holds a count per page and, per writer, a watermark: the last segment of that writer that
the counts include. A watermark is written as a token, `"<segment number>:<seal nonce>"`, or `""` for none; the
nonce tells a segment from another of the same number (a copied journal).

Units: counts and visits are whole numbers of visits; time-outs are seconds.
Failure: `StoreUnavailableError` means that the call may have been carried out or not; `StoreRefusedError` means
that it was not. No method retries a call that changes something: the caller does, because only the caller
knows that a batch is guarded by its watermark.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from visit_counter.shards.identity import Identity

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from visit_counter.errors import StoreError
    from visit_counter.model.visits import Tally
    from visit_counter.shards.redis.replicas import Replica

NO_WATERMARK = ""
# What `watermarks` returns for a partition if something else is in its place. No flush writes this.
NOT_A_PARTITION = "?"
_TOKEN = re.compile(r"[0-9]{1,18}:[^\s:]+")


@dataclass(slots=True)
class Stored:
    """What a store holds for one page, read atomically: its stored visits, and the writer's watermark token.

    `losses` is a number of its partition that is raised when a writer finds that visits of it are lost for good.
    `stamp` is that of the partition (see `shards.stamps`); equal counts may have been stored by other applies.
    """

    visits: int
    watermark: str
    losses: int = 0
    stamp: str = field(default="", compare=False)


class Look(NamedTuple):
    """The state of a partition, which shows whether its counts have changed: what `Stored` has for all its pages."""

    watermark: str
    losses: int
    stamp: str


class Batch(NamedTuple):
    """The visits of one partition in the segments after `expected` up to and including `watermark`."""

    partition: int
    expected: str
    watermark: str
    visits: Tally


class Applied(NamedTuple):
    """The watermark token a partition has after `apply`; the batch is included if it equals the batch's own.

    `error` is None, or why this batch got no answer or a refusal (the rest of the call may have succeeded). With
    `refused`, it was not carried out, nor will it be later. With `moved_to`, the partition is on the shard of that name
    now. `aside` names the pages whose counts are no numbers: their visits are in the partition, beside the counts.
    """

    partition: int
    watermark: str
    error: str | None = None
    moved_to: str | None = None
    refused: bool = False
    aside: tuple[str, ...] = ()


def segment_of(watermark: str) -> int:
    """Return the segment number of a watermark token; 0 for none."""
    return int(watermark.partition(":")[0] or 0)


def is_token(watermark: str) -> bool:
    """Tell whether this is what a flush writes, or none; a person or another program may have written anything."""
    return watermark == NO_WATERMARK or _TOKEN.fullmatch(watermark) is not None


def is_base(watermark: str) -> bool:
    """Tell whether a token is a number to start from (`"17:"`), which no partition has as its watermark."""
    return watermark.endswith(":")


def all_of(found: Sequence[str | StoreError]) -> list[str]:
    """Return the watermarks that `Store.watermarks_each` returned if all could be had; raises the first error."""
    watermarks = []
    for each in found:
        if not isinstance(each, str):
            raise each
        watermarks.append(each)
    return watermarks


class Store(ABC):
    """One place that keeps partitions. Safe to use from several threads."""

    name: str
    # Where it is, without secrets; "" for a store in this process.
    address: str = ""

    @abstractmethod
    def add(self, page: str, visits: int) -> int:
        """Count visits of a page at once, with no watermark; return the page's new count.

        Not exactly-once: after StoreUnavailableError the visits may have been counted.
        """

    @abstractmethod
    def read(self, writer: str, pages: Sequence[str]) -> list[Stored]:
        """Return what is stored for each page, in order; each page's pair is read atomically.

        Raises StoreError if any page cannot be read.
        """

    def look(self, writer: str, partitions: Sequence[int]) -> list[Look | None]:  # noqa: ARG002 - see below
        """Return the state of each partition, in order; None if it is not known. Never raises."""
        return [None] * len(partitions)

    @abstractmethod
    def apply(self, writer: str, batches: Iterable[Batch]) -> list[Applied]:
        """Apply each batch whose `expected` is the partition's watermark now; return an Applied for each, in order.

        A batch is applied whole or not at all. One whose `expected` does not match changes nothing and returns
        the watermark there is. Never raises StoreError: a batch that failed says so in its Applied.
        """

    @abstractmethod
    def watermarks(self, writer: str, partitions: Sequence[int]) -> list[str]:
        """Return the writer's watermark token in each partition, in order. Raises StoreError.

        A text that no flush has written is returned as it is, and NOT_A_PARTITION where there is something else.
        """

    def watermarks_each(self, writer: str, partitions: Sequence[int]) -> list[str | StoreError]:
        """Return what `watermarks` does, with an error in the place of each one that cannot be had while others can.

        Raises StoreError where none can be had.
        """
        return list(self.watermarks(writer, partitions))

    @abstractmethod
    def raise_losses(self, by: Mapping[int, int]) -> set[int]:
        """Raise the `losses` of each partition by a number; return the partitions where that is known to be done.

        After a raised number, every reader believes a count that is lower than one that was read before.
        """

    @abstractmethod
    def persist(self, timeout_seconds: float) -> bool | None:
        """Wait until everything applied so far through this object is on the store's disk (and its replicas').

        True: it is. False: not within the time-out, ask again later. None: this store cannot tell.
        """

    def remember_replicas(self, known: Mapping[str, Replica]) -> None:  # noqa: B027 - a store without replicas does nothing
        """Set the replicas that `persist` has to wait for; those that it finds are added to them."""

    def known_replicas(self) -> dict[str, Replica]:
        """Return the replicas there are and were, by address; none for a store that has no such thing."""
        return {}

    def one_per_server(self, partitions: Sequence[int]) -> list[int]:
        """Return some of these partitions: one for each server that has any.

        After a write to that partition through this object, `persist` covers everything its server had received before,
        also what other processes had sent.
        """
        return list(partitions[:1])

    def read_shard_map(self) -> str:
        """Return the shard map kept here (see `visit_counter.shards.shard_map`), or "" for none. Raises StoreError."""
        return ""

    def offer_shard_map(self, text: str) -> str:
        """Keep this shard map unless a newer one is here; return the one there is then. Raises StoreError.

        A store that keeps none, as these two methods say, is not shared with a host that could disagree.
        """
        return text

    def read_identity(self) -> Identity:
        """Return who the server says it is (see `visit_counter.shards.identity`). Raises StoreError."""
        return Identity()

    def name_server(self, identity: Identity) -> None:  # noqa: B027 - a store in this process is who it is
        """Tell a server that says nothing who it is. Raises StoreError."""

    def expect(self, identity: Identity) -> None:  # noqa: B027 - a store in this process is who it is
        """From now on, treat a server that says it is another shard as down; `reason` says why."""

    @abstractmethod
    def ping(self) -> bool:
        """Tell whether the store answers now; never raises."""

    def reason(self) -> str:
        """Return, without asking, why this store or a part of it is taken to be down; "" if it is not."""
        return ""

    def report_outages(self) -> None:  # noqa: B027 - a store that is never down has nothing to report
        """Log from now on when a server is down and when it is back, once each."""

    def owner(self, page: str) -> str:  # noqa: ARG002 - of several stores, it is the one that keeps the page
        """Return who keeps a page. If one page of an owner cannot be read, the others cannot either."""
        return self.name

    def is_down(self, page: str) -> bool:  # noqa: ARG002 - of several stores, it is the one that keeps the page
        """Tell, without asking, whether the store of a page is known not to answer now."""
        return False

    def needs_probe(self) -> bool:
        """Tell, without asking, whether anything of this store is known not to answer now."""
        return self.is_down("")

    def probe(self) -> None:  # noqa: B027 - a store that is never down has nothing to do
        """Ask a store that is down whether it is back, if it is time to ask; called every half second, never raises."""

    @abstractmethod
    def close(self) -> None:
        """Release connections."""
