"""What the flush has confirmed, kept beside the journal: `journal/state.json`, replaced atomically and durably.

Everything in it is a lower bound that the shards' own watermarks confirm or correct, so an older state, or none, costs
work and knowledge of damage but no visit.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from visit_counter.journal import sync_directory, write_durably

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = 1
MAX_DAMAGE_NOTES = 50


@dataclass(slots=True)
class LastFlush:
    """How the last flush went. `at` is seconds since the epoch, for people; nothing is decided by it."""

    at: float
    seconds: float
    visits: int
    pages: int
    error: str = ""


@dataclass(slots=True)
class State:
    """`floor`: every partition includes the segments up to it. `confirmed`: watermark token by partition.

    `attempted`: by shard (and layout, see `Round._apply`), segment numbers that its partitions may or may not have as
    their watermark, because batches were sent and not all were answered; no merge crosses one of them. `damage`: what
    was found that only a person can explain, oldest first. `losses`: how often a shard was found to have lost visits
    for good. `unpersisted`: of the partitions that are not known to be on their shard's disk, the segment number that
    each may fall back to, and the last segment that this includes. `forgotten`: by partition, the last segment whose
    visits of it, once included, are no longer retained. `away`: by shard, since when flushes find it so; seconds since
    the epoch, for people.
    """

    writer: str = ""
    floor: int = 0
    confirmed: dict[int, str] = field(default_factory=dict)
    attempted: dict[str, list[int]] = field(default_factory=dict)
    damage: list[str] = field(default_factory=list)
    losses: int = 0
    last_flush: LastFlush | None = None
    unpersisted: dict[int, tuple[int, int]] = field(default_factory=dict)
    forgotten: dict[int, int] = field(default_factory=dict)
    away: dict[str, float] = field(default_factory=dict)

    def note_damage(self, text: str) -> None:
        """Remember one finding, once, with the time it was found at."""
        if any(note.endswith(f" {text}") for note in self.damage):
            return
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.damage = [*self.damage, f"{stamp} {text}"][-MAX_DAMAGE_NOTES:]

    def save(self, path: Path) -> None:
        """Write the state durably. Raises OSError; the state before it then stays."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, separators=(",", ":"))
        temporary = path.with_suffix(".tmp")
        write_durably(temporary, text.encode())
        temporary.replace(path)
        # Without this a power loss brings the old state back, and with it merges across a number that was sent.
        sync_directory(path.parent)

    @classmethod
    def load(cls, path: Path) -> State:
        """Read the state; an empty one where there is none or it cannot be read (`damage` then says so)."""
        try:
            raw: dict[str, Any] = json.loads(path.read_bytes())
            if raw.pop("format") != FORMAT:
                raise ValueError("unknown format")
            last = raw.pop("last_flush")
            confirmed = {int(partition): str(token) for partition, token in raw.pop("confirmed").items()}
            unpersisted = {int(partition): tuple(numbers) for partition, numbers in raw.pop("unpersisted", {}).items()}
            forgotten = {int(partition): int(number) for partition, number in raw.pop("forgotten", {}).items()}
            return cls(
                **raw,
                confirmed=confirmed,
                unpersisted=unpersisted,
                forgotten=forgotten,
                last_flush=LastFlush(**last) if last else None,
            )
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            state = cls()
            state.note_damage(f"state.json cannot be read ({error}); the shards' watermarks are used instead")
            return state
