"""What the flush has confirmed, kept beside the journal: `journal/state.json`, replaced atomically and durably.

Everything in it is a lower bound that the shards' own watermarks confirm or correct, so an older state, or none, costs
work and knowledge of damage but no visit.
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
# Beside the state and not in it: a person need not wait for a flush that hangs, and a lost state loses no signature.
_ACKNOWLEDGED = "acknowledged.json"


@dataclass(slots=True)
class LastFlush:
    """How the last flush went. `at` is seconds since the epoch, for people; nothing is decided by it."""

    at: float
    seconds: float
    visits: int
    pages: int
    error: str = ""


@dataclass(slots=True)
class Checkpoint:
    """What one journal's flushes have confirmed, sent and found.

    Segments are told by their numbers, partitions by theirs, shards by their names. Where nothing else is said, times
    are seconds since the epoch; they are for people, and nothing is decided by them.
    """

    # The journal's id. The watermarks below are under it.
    writer: str = ""
    # Every partition includes the segments up to this one.
    floor: int = 0
    # For each partition, the watermark that it was last known to have.
    confirmed: dict[int, str] = field(default_factory=dict)
    # For each shard (see `Round._apply`), the segments that may or may not have become a watermark there.
    attempted: dict[str, list[int]] = field(default_factory=dict)
    # What was found that only a person can explain, oldest first.
    damage: list[str] = field(default_factory=list)
    # How often a shard was found to have lost visits for good.
    losses: int = 0
    # How the last flush went, whether it reached all shards or not; None before the first flush.
    last_flush: LastFlush | None = None
    # For each partition that may not be on its shard's disk, the segment it may fall back to and the last it includes.
    unpersisted: dict[int, tuple[int, int]] = field(default_factory=dict)
    # For each partition, the last segment that held visits of it and that is no longer retained.
    forgotten: dict[int, int] = field(default_factory=dict)
    # For each shard that the last flush could not bring everything, the time since when.
    down: dict[str, float] = field(default_factory=dict)
    # For each shard that the last flush could not bring everything, the reason.
    trouble: dict[str, str] = field(default_factory=dict)
    # For each partition with a watermark that no flush wrote, that text and the segment that it is taken for.
    strange: dict[int, tuple[str, int]] = field(default_factory=dict)
    # The partitions in whose place the last flush found something else.
    blocked: list[int] = field(default_factory=list)
    # The pages whose last visits were set aside, since what is stored for them is no count.
    uncounted: list[str] = field(default_factory=list)
    # For each shard, its replicas by address, as they were last seen.
    replicas: dict[str, dict[str, Replica]] = field(default_factory=dict)
    # When a flush last brought everything to every shard; 0 for never.
    complete_at: float = 0.0
    # For each partition, how often this writer found that visits of it are lost for good.
    lost: dict[int, int] = field(default_factory=dict)
    # The partitions whose readers, on all hosts, have still to be told so.
    untold: list[int] = field(default_factory=list)
    # For each segment that has no file, when that was found (by `Journal.now`), or GIVEN_UP.
    missing: dict[int, float] = field(default_factory=dict)

    def replicas_away(self) -> list[tuple[str, str, float]]:
        """Return the shard, the address and since when of each replica that flushed visits are kept for."""
        return [
            (shard, name, replica.away_since)
            for shard, known in self.replicas.items()
            for name, replica in known.items()
            if replica.away_since and not replica.given_up
        ]

    def confirm(self, partition: int, watermark: str) -> None:
        """Record what a partition includes; it may fall back to what it had until its shard has it on disk."""
        before = self.confirmed.get(partition, NO_WATERMARK)
        if watermark != before:
            self.confirmed[partition] = watermark
            number = segment_of(before)
            self.unpersisted.setdefault(partition, (number, max(number, self.floor)))

    def forget_attempts(self, segments: Iterable[int]) -> None:
        """Take any of these segments for one that was sent: this state is older than what was there, or empty."""
        self.attempted["unknown"] = sorted(segments)

    def note_damage(self, text: str, *, again: bool = False) -> bool:
        """Remember one finding, with the time it was found at; return False if it is known already.

        With `again` it is another one, though it has the same text.
        """
        if not again and any(note.endswith(f" {text}") for note in self.damage):
            return False
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.damage = [*self.damage, f"{stamp} {text}"][-MAX_DAMAGE_NOTES:]
        return True

    def save(self, path: Path) -> None:
        """Write the state durably. Raises OSError; the state before it then stays."""
        temporary = path.with_suffix(".tmp")
        write_durably(temporary, self._to_json().encode())
        temporary.replace(path)
        # Without this a power loss brings the old state back, and with it merges across a number that was sent.
        sync_directory(path.parent)

    def _to_json(self) -> str:
        # Not `asdict`, which copies the watermarks of 4,096 partitions one by one: that takes nine times as long.
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        last_flush = asdict(self.last_flush) if self.last_flush else None
        return json.dumps({"format": FORMAT, **values, "last_flush": last_flush}, separators=(",", ":"))

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read the state; an empty one where there is none or it cannot be read (`damage` then says so)."""
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
                raw["down"] = raw.pop("away")  # its name in the versions before
            # A state of the version before tells only of the last flush.
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
    """Return the damage notes that a person has acknowledged, and who did when; none where there is no such file."""
    try:
        notes: dict[str, str] = json.loads((journal_path / _ACKNOWLEDGED).read_bytes())
        return {str(note): str(by) for note, by in notes.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def acknowledge(journal_path: Path, damage: list[str], by: str) -> list[str]:
    """Remember durably that a person has seen these notes; return those that nobody had. Raises OSError."""
    before = acknowledged(journal_path)
    new = [note for note in damage if note not in before]
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    kept = {note: before.get(note, f"{stamp} by {by}") for note in damage}
    temporary = journal_path / f"{_ACKNOWLEDGED}.{os.getpid()}.tmp"
    write_durably(temporary, json.dumps(kept, indent=1).encode())
    temporary.replace(journal_path / _ACKNOWLEDGED)
    sync_directory(journal_path)
    return new
