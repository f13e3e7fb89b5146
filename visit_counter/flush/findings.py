"""The findings of one flush: the shards that did not receive everything, and damage that only a person can explain."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from visit_counter.journal.checkpoint import Checkpoint

log = logging.getLogger(__name__)

_MOST_REASONS = 8


class Findings:
    """The failures and damage of one flush. `changed`: the processes of this host should read the state again."""

    def __init__(self, state: Checkpoint) -> None:
        self._state = state
        self.failures: set[str] = set()
        self.trouble: dict[str, str] = {}  # for each shard that did not receive everything, the first reason
        self.changed = False

    @property
    def error(self) -> str:
        """The failures in one text, which names at most the first eight; "" if there are none."""
        reasons = sorted(self.failures)
        more = [f"and {len(reasons) - _MOST_REASONS} more"] if len(reasons) > _MOST_REASONS else []
        return "; ".join(reasons[:_MOST_REASONS] + more)

    def fail(self, shard: str, reason: str) -> None:
        """Note that a shard did not receive everything; each of its partitions may have a reason of its own."""
        text = reason if reason.startswith((f"{shard}:", f"{shard} (")) else f"{shard}: {reason}"
        self.trouble.setdefault(shard, text)
        self.failures.add(text)

    def damage(self, text: str, *, again: bool = False) -> None:
        """Note damage that only a person can explain: once for each text, unless it has happened `again`."""
        if self._state.note_damage(text, again=again):
            log.error("%s", text)
            self.changed = True
