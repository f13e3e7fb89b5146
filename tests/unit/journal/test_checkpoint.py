"""What the flush has confirmed."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import pytest

from visit_counter.journal.checkpoint import GIVEN_UP, MAX_DAMAGE_NOTES, Checkpoint, LastFlush
from visit_counter.shards.redis.replicas import Replica

if TYPE_CHECKING:
    from pathlib import Path


# A state in which no field is as it is by default.
_FULL = Checkpoint(
    "w",
    7,
    {3: "7:ab", 4000: "5:"},
    {"redis_7070": [6]},
    ["x"],
    4,
    LastFlush(1.5, 0.1, 3, 2, "e"),
    {3: (5, 6)},
    {3: 5},
    strange={7: ("nonsense \udcff", 4)},
    replicas={"redis_7070": {"10.0.0.2:7070": Replica("", 50.0, given_up=True)}},
    blocked=[9],
    uncounted=["a"],
    trouble={"redis_7070": "full"},
    complete_at=3.5,
    down={"redis_7070": 1.0},
    lost={3: 1},
    untold=[3],
    missing={2: GIVEN_UP},
)


def test_a_state_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    empty = Checkpoint()
    assert [each.name for each in fields(_FULL) if getattr(_FULL, each.name) == getattr(empty, each.name)] == []
    _FULL.save(tmp_path / "state.json")
    assert Checkpoint.load(tmp_path / "state.json") == _FULL


def test_a_state_of_the_version_before_is_understood(tmp_path: Path) -> None:
    Checkpoint("w", 7, down={"redis_7070": 1.0}).save(tmp_path / "state.json")
    text = (tmp_path / "state.json").read_text()
    (tmp_path / "state.json").write_text(text.replace('"down"', '"away"'))
    assert Checkpoint.load(tmp_path / "state.json") == Checkpoint("w", 7, down={"redis_7070": 1.0})


def test_no_state_is_an_empty_one(tmp_path: Path) -> None:
    assert Checkpoint.load(tmp_path / "state.json") == Checkpoint()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": 2}', '{"format": 1, "confirmed": 3}', "null", "\xff"]
)
def test_a_state_that_cannot_be_read_is_empty_and_says_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text, encoding="latin-1")
    state = Checkpoint.load(tmp_path / "state.json")
    assert (state.floor, state.confirmed) == (0, {})
    assert "state.json cannot be read" in state.damage[0]


def test_a_state_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Checkpoint("w", 1).save(tmp_path / "state.json")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("visit_counter.journal.checkpoint.write_durably", full)
    with pytest.raises(OSError, match="No space"):
        Checkpoint("w", 2).save(tmp_path / "state.json")
    assert Checkpoint.load(tmp_path / "state.json").floor == 1


def test_damage_notes_are_bounded_and_the_newest_stay() -> None:
    state = Checkpoint()
    for number in range(MAX_DAMAGE_NOTES + 5):
        state.note_damage(str(number))
    assert len(state.damage) == MAX_DAMAGE_NOTES
    assert state.damage[-1].endswith(f" {MAX_DAMAGE_NOTES + 4}")
