"""An application in memory, as one client of HTTP meets it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from visit_counter import create_app
from visit_counter.statistics import shared_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask.testing import FlaskClient

    from visit_counter.config.settings import Settings


@pytest.fixture(autouse=True)
def _own_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the guards of this test remember nothing of another one's visits."""
    monkeypatch.setattr(shared_table, "_shared", {})


@pytest.fixture
def client(settings: Callable[..., Settings], request: pytest.FixtureRequest) -> FlaskClient:
    """A client of the application; settings from the mark `visits` go over those of the profile `basic`."""
    marked = request.node.get_closest_marker("visits")
    given = {f"VISITS_{name}": value for name, value in marked.kwargs.items()} if marked else {}
    return create_app(settings(VISITS_PROFILE="basic", **given)).test_client()
