"""What the flush has confirmed, kept beside the journal: `journal/state.json`, replaced atomically and durably.

Everything in it is a lower bound that the shards' own watermarks confirm or correct, so an older state, or none, costs
work and knowledge of damage but no visit.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from visit_counter.journal import write_durably

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
    was found that only a person can explain, oldest first.
    """

    writer: str = ""
    floor: int = 0
    confirmed: dict[int, str] = field(default_factory=dict)
    attempted: dict[str, list[int]] = field(default_factory=dict)
    damage: list[str] = field(default_factory=list)
    last_flush: LastFlush | None = None

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

    @classmethod
    def load(cls, path: Path) -> State:
        """Read the state; an empty one where there is none or it cannot be read (`damage` then says so)."""
        try:
            raw: dict[str, Any] = json.loads(path.read_bytes())
            if raw.pop("format") != FORMAT:
                raise ValueError("unknown format")
            last = raw.pop("last_flush")
            confirmed = {int(partition): str(token) for partition, token in raw.pop("confirmed").items()}
            return cls(**raw, confirmed=confirmed, last_flush=LastFlush(**last) if last else None)
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            state = cls()
            state.note_damage(f"state.json cannot be read ({error}); the shards' watermarks are used instead")
            return state
