"""Judges what a shard answers for a page, by what this host knows, has confirmed and has retained.

A shard may have come back with older data, or have the watermark of a copied journal. Then its count is lower than the
known one, and it is not believed until a flush has reported that visits are lost for good.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from visit_counter.errors import StoreError, StoreRefusedError
from visit_counter.journal.records import Known
from visit_counter.shards.contract import NO_WATERMARK, Stored, is_base, segment_of
from visit_counter.shards.ring import partition_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from visit_counter.journal.buffer import WriteBuffer
    from visit_counter.journal.segments import Segment
    from visit_counter.shards.contract import Store


class Judge:
    """Decides which count a read of a shard proves. All methods expect the buffer's lock to be held."""

    def __init__(self, buffer: WriteBuffer, store: Store) -> None:
        self._buffer, self._store = buffer, store

    def judge(
        self, page: str, stored: Stored, mine: Known | None, retained: Mapping[Segment, Mapping[str, int]] | None
    ) -> Known | StoreError | None:
        """Return the page's count after a read; None if `retained` is needed to know it and is None.

        `stored` is what the shard answered, `mine` the count that this process knew before.
        """
        buffer = self._buffer
        confirmed = buffer.state.confirmed.get(partition_of(page), NO_WATERMARK)
        if self.is_foreign(stored.watermark, confirmed):
            return self._judge_foreign(page, stored, mine)
        has_base = stored.watermark == NO_WATERMARK and is_base(confirmed)
        segment = segment_of(confirmed if has_base else stored.watermark)
        if segment < segment_of(confirmed):
            # The partition had a higher watermark before: its shard came back with older data.
            if mine is not None and stored.losses <= mine.losses:
                return mine
            if retained is None:
                return None
            lacking = sum(visits.get(page, 0) for at, visits in retained.items() if segment < at.last)
            return Known(stored.losses, max(segment, buffer.included_to), stored.visits + lacking)
        # The segments from the watermark to `included_to` held no visits of this partition.
        read = Known(stored.losses, max(segment, buffer.included_to), stored.visits)
        return read if mine is None else self.later(page, mine, read)

    def _judge_foreign(self, page: str, stored: Stored, mine: Known | None) -> Known | StoreError:
        """Return the page's count after a read that found the watermark of a copy of this journal.

        Its stored count includes the segments that every partition includes. Whether it includes later ones is not
        known before the next flush, so no count is returned for a page with visits in these.
        """
        included_to = self._buffer.included_to
        if self._buffer.tables.pending(page, included_to):
            return mine or StoreRefusedError(
                self._store.owner(page), "another journal uses this writer's id; the next flush takes a new one"
            )
        read = Known(stored.losses, included_to, stored.visits)
        return read if mine is None else self.later(page, mine, read)

    def is_ours(self, partition: int, watermark: str) -> bool:
        """Return whether a watermark under our writer's id is surely one of this journal's."""
        confirmed = self._buffer.state.confirmed.get(partition, NO_WATERMARK)
        return watermark == confirmed or self._buffer.tables.token_of(segment_of(watermark)) == watermark

    def is_plain(self, partition: int, watermark: str) -> bool:
        """Return whether a watermark is neither that of older data nor that of a copied journal."""
        confirmed = self._buffer.state.confirmed.get(partition, NO_WATERMARK)
        return segment_of(watermark) >= segment_of(confirmed) and not self.is_foreign(watermark, confirmed)

    def is_foreign(self, watermark: str, confirmed: str) -> bool:
        """Return whether a watermark under our writer's id belongs to no segment that this journal has sealed."""
        if watermark in (NO_WATERMARK, confirmed):
            return False
        token = self._buffer.tables.token_of(segment_of(watermark))
        return token is not None and token != watermark

    def later(self, page: str, mine: Known, other: Known) -> Known:
        """Return the later of two counts of a page: the one with more `losses`, else the one that gives a higher sum.

        The sums are comparable: each adds the visits that are pending for its own watermark.
        """
        pending = self._buffer.tables.pending
        mine_is_later = (mine.losses, mine.stored + pending(page, mine.segment)) >= (
            other.losses,
            other.stored + pending(page, other.segment),
        )
        return mine if mine_is_later else other
