"""What a reload may change."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from visit_counter.config.settings import Settings
from visit_counter.errors import StartupError
from visit_counter.server.life import _wrong_settings

Make = Callable[..., Settings]


def test_a_reload_cannot_move_the_journal_or_change_the_profile(settings: Make) -> None:
    running = settings(VISITS_PROFILE="basic")
    wrong = _wrong_settings(settings(VISITS_PROFILE="cached", VISITS_DATA_DIR="/elsewhere"), running)
    assert "VISITS_PROFILE" in wrong
    assert "VISITS_DATA_DIR" in wrong
    assert "stop it and start it again" in wrong


def test_a_reload_may_change_everything_else(settings: Make) -> None:
    changed = settings(VISITS_PROFILE="basic", VISITS_CACHE_SECONDS="1")
    assert _wrong_settings(changed, settings(VISITS_PROFILE="basic")) == ""


def test_a_reload_checks_what_a_start_checks(settings: Make) -> None:
    new = settings(VISITS_SHARDS="redis://127.0.0.1:1")
    new.data_dir.touch()
    with pytest.raises(StartupError, match="VISITS_DATA_DIR"):
        _wrong_settings(new, new)
