"""The flush's record of what it has sent and confirmed: `journal/state.json`, replaced atomically and durably.

Each number in it is a lower bound, which the watermarks in the shards confirm or correct. So a state that is old or
gone makes the next flush work more, and loses the notes of damage, but it loses no visit.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from visit_counter.journal.files import sync_directory, write_durably
from visit_counter.shards.contract import NO_WATERMARK, segment_of
from visit_counter.shards.redis.replicas import Replica

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

FORMAT = 1
MAX_DAMAGE_NOTES = 50
# In the place of a time in `Checkpoint.missing`: flushes go on without this segment.
GIVEN_UP = -1.0
# A file beside the state: a person can acknowledge while a flush hangs, and a lost state loses no acknowledgement.
_ACKNOWLEDGED = "acknowledged.json"


@dataclass(slots=True)
class LastFlush:
    """The outcome of the last flush. `at` is in seconds since the epoch, for people; no decision depends on it."""

    at: float
    seconds: float
    visits: int
    pages: int
    error: str = ""


@dataclass(slots=True)
class Checkpoint:
    """What the flushes of one journal have confirmed, sent and found.

    Segments and partitions are given by number, shards by name. Times are in seconds since the epoch unless a comment
    says otherwise; they are for people, and no decision depends on them.
    """

    # The journal's id. The shards keep the watermarks below under it.
    writer: str = ""
    # Every partition includes the segments up to this one.
    floor: int = 0
    # For each partition, the last watermark that its shard confirmed.
    confirmed: dict[int, str] = field(default_factory=dict)
    # For each shard (see `Round._apply`), the segments that were sent and may or may not be a watermark there now.
    attempted: dict[str, list[int]] = field(default_factory=dict)
    # Notes of damage that only a person can explain, oldest first.
    damage: list[str] = field(default_factory=list)
    # How often a flush found that a shard has lost visits for good.
    losses: int = 0
    # The outcome of the last flush, whether it reached all shards or not; None before the first flush.
    last_flush: LastFlush | None = None
    # For each partition whose last changes may not be on its shard's disk: the segment that it may fall back to, and
    # the last segment that it includes.
    unpersisted: dict[int, tuple[int, int]] = field(default_factory=dict)
    # For each partition, the last segment with visits of it that was deleted.
    forgotten: dict[int, int] = field(default_factory=dict)
    # For each shard that did not receive everything in the last flush, the time of the first such flush.
    down: dict[str, float] = field(default_factory=dict)
    # For each shard that did not receive everything in the last flush, the reason.
    trouble: dict[str, str] = field(default_factory=dict)
    # For each partition with a watermark that no flush wrote: that text, and the segment that it is taken to mean.
    strange: dict[int, tuple[str, int]] = field(default_factory=dict)
    # The partitions whose Redis key held something other than a partition in the last flush.
    blocked: list[int] = field(default_factory=list)
    # The pages whose last visits were set aside, since the text stored for them is not a count.
    uncounted: list[str] = field(default_factory=list)
    # For each shard, its replicas by address, as the last flush found them.
    replicas: dict[str, dict[str, Replica]] = field(default_factory=dict)
    # When a flush last brought everything to every shard; 0 for never.
    complete_at: float = 0.0
    # For each partition, how often a flush of this writer found that visits of it are lost for good.
    lost: dict[int, int] = field(default_factory=dict)
    # The partitions with such a loss whose field `losses` must still be raised, which reports it to all hosts.
    untold: list[int] = field(default_factory=list)
    # For each segment without a file, the time at which a flush noticed it (by `Journal.now`), or GIVEN_UP.
    missing: dict[int, float] = field(default_factory=dict)

    def replicas_away(self) -> list[tuple[str, str, float]]:
        """Return (shard, address, time since when) of each replica that is away and that visits are retained for."""
        return [
            (shard, name, replica.away_since)
            for shard, known in self.replicas.items()
            for name, replica in known.items()
            if replica.away_since and not replica.given_up
        ]

    def confirm(self, partition: int, watermark: str) -> None:
        """Record the watermark that a partition has now.

        Until its shard has this on disk, the partition may fall back to the watermark before it.
        """
        before = self.confirmed.get(partition, NO_WATERMARK)
        if watermark != before:
            self.confirmed[partition] = watermark
            number = segment_of(before)
            self.unpersisted.setdefault(partition, (number, max(number, self.floor)))

    def forget_attempts(self, segments: Iterable[int]) -> None:
        """Note all these segments as perhaps sent: this state is empty, or older than the one that was lost."""
        self.attempted["unknown"] = sorted(segments)

    def note_damage(self, text: str, *, again: bool = False) -> bool:
        """Add a note of damage, with the time of now; return False if there is one with this text already.

        With `again` it is added even then: the same thing has happened once more.
        """
        if not again and any(note.endswith(f" {text}") for note in self.damage):
            return False
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.damage = [*self.damage, f"{stamp} {text}"][-MAX_DAMAGE_NOTES:]
        return True

    def save(self, path: Path) -> None:
        """Write the state durably. Raises OSError; the file then still holds the previous state."""
        temporary = path.with_suffix(".tmp")
        write_durably(temporary, self._to_json().encode())
        temporary.replace(path)
        # Without this, a power loss could bring the old state back, which lacks numbers that were sent since; a later
        # flush would then merge segments across such a number.
        sync_directory(path.parent)

    def _to_json(self) -> str:
        # Not `asdict`, which copies the watermarks of 4,096 partitions one by one: that takes nine times as long.
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        last_flush = asdict(self.last_flush) if self.last_flush else None
        return json.dumps({"format": FORMAT, **values, "last_flush": last_flush}, separators=(",", ":"))

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read the state. Without a file, return an empty state; if it cannot be read, an empty one with a note."""
        try:
            raw: dict[str, Any] = json.loads(path.read_bytes())
            if raw.pop("format") != FORMAT:
                raise ValueError("unknown format")
            last = raw.pop("last_flush")
            confirmed = {int(partition): str(token) for partition, token in raw.pop("confirmed").items()}
            unpersisted = {int(partition): tuple(numbers) for partition, numbers in raw.pop("unpersisted", {}).items()}
            missing = {int(number): float(at) for number, at in raw.pop("missing", {}).items()}
            forgotten = {int(partition): int(number) for partition, number in raw.pop("forgotten", {}).items()}
            strange = {int(partition): tuple(found) for partition, found in raw.pop("strange", {}).items()}
            replicas = {
                shard: {name: Replica(*found) for name, found in known.items()}
                for shard, known in raw.pop("replicas", {}).items()
            }
            if "away" in raw:
                raw["down"] = raw.pop("away")  # its name in earlier versions
            # An earlier version wrote only the time of the last flush.
            raw.setdefault("complete_at", last["at"] if last and not last["error"] else 0.0)
            lost = {int(partition): int(times) for partition, times in raw.pop("lost", {}).items()}
            return cls(
                **raw,
                lost=lost,
                confirmed=confirmed,
                unpersisted=unpersisted,
                forgotten=forgotten,
                strange=strange,
                replicas=replicas,
                missing=missing,
                last_flush=LastFlush(**last) if last else None,
            )
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            state = cls()
            state.note_damage(f"state.json cannot be read ({error}); the shards' watermarks are used instead")
            return state


def acknowledged(journal_path: Path) -> dict[str, str]:
    """Return the damage notes that people have acknowledged, each with the time and the person's name."""
    try:
        notes: dict[str, str] = json.loads((journal_path / _ACKNOWLEDGED).read_bytes())
        return {str(note): str(by) for note, by in notes.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def acknowledge(journal_path: Path, damage: list[str], by: str) -> list[str]:
    """Write durably that a person has seen these notes; return those that nobody had acknowledged. Raises OSError."""
    before = acknowledged(journal_path)
    new = [note for note in damage if note not in before]
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    kept = {note: before.get(note, f"{stamp} by {by}") for note in damage}
    temporary = journal_path / f"{_ACKNOWLEDGED}.{os.getpid()}.tmp"
    write_durably(temporary, json.dumps(kept, indent=1).encode())
    temporary.replace(journal_path / _ACKNOWLEDGED)
    sync_directory(journal_path)
    return new
