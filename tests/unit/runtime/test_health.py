"""What a process tells of itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.support.clock import Clock
from visit_counter.journal.checkpoint import Checkpoint, LastFlush, acknowledge, acknowledged
from visit_counter.runtime.health import FlushWatch, Health, flush_complaints

if TYPE_CHECKING:
    from pathlib import Path

COMPLETE = Checkpoint(last_flush=LastFlush(50.0, 0.1, 1, 1), complete_at=50.0)


def test_a_flush_is_overdue_when_none_was_complete_for_three_intervals() -> None:
    clock = Clock()
    watch = FlushWatch(30.0, clock)
    assert flush_complaints(COMPLETE, watch) == []
    clock.now += 90
    assert flush_complaints(COMPLETE, watch) == []
    clock.now += 1
    assert flush_complaints(COMPLETE, watch) == ["no flush has reached every shard for 91 s; one is due every 30 s"]
    later = Checkpoint(last_flush=LastFlush(20.0, 0.1, 1, 1), complete_at=20.0)  # the wall clock was set back
    assert flush_complaints(later, watch) == []


def test_a_flush_that_failed_is_told_with_the_reason_of_each_shard() -> None:
    state = Checkpoint(
        last_flush=LastFlush(60.0, 0.1, 1, 1, "a: full; b: away; a: full too"),
        trouble={"a": "a: full", "b": "b: away"},
        complete_at=50.0,
    )
    told = ["the last flush failed: a: full", "the last flush failed: b: away"]
    assert flush_complaints(state, FlushWatch(30.0, Clock())) == told
    state.trouble.clear()
    assert flush_complaints(state, FlushWatch(30.0, Clock())) == [
        "the last flush failed: a: full; b: away; a: full too"
    ]


def test_what_is_refused_is_unhealthy_and_what_is_complained_of_degraded() -> None:
    assert Health("basic", {}).status == "healthy"
    assert Health("sharded", {}, None, ("x",)).status == "degraded"
    found = Health("sharded", {}, "no", ("x",))
    assert (found.status, found.reasons) == ("unhealthy", ["no", "x"])


def test_an_acknowledged_note_stays_so_and_a_new_one_is_not(tmp_path: Path) -> None:
    assert acknowledged(tmp_path) == {}
    assert acknowledge(tmp_path, ["one"], "alice") == ["one"]
    assert acknowledge(tmp_path, ["one", "two"], "bob") == ["two"]
    found = acknowledged(tmp_path)
    assert found["one"].endswith(" by alice")
    assert found["two"].endswith(" by bob")
    acknowledge(tmp_path, ["two"], "carol")
    assert list(acknowledged(tmp_path)) == ["two"]


def test_a_file_of_acknowledgements_that_cannot_be_read_acknowledges_nothing(tmp_path: Path) -> None:
    for text in ("{", "[1]", "3"):
        (tmp_path / "acknowledged.json").write_text(text, encoding="ascii")
        assert acknowledged(tmp_path) == {}


def test_a_state_of_the_version_before_tells_when_a_flush_was_last_complete(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    for error, at in (("", 50.0), ("away", 0.0)):
        Checkpoint(last_flush=LastFlush(50.0, 0.1, 1, 1, error)).save(path)
        raw = json.loads(path.read_text(encoding="ascii"))
        for name in ("complete_at", "trouble"):
            del raw[name]
        path.write_text(json.dumps(raw), encoding="ascii")
        assert Checkpoint.load(path).complete_at == at
