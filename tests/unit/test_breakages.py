"""The deliberate breakages fit the code: `python -m tests.breakages` tries them."""

from __future__ import annotations

import pytest

from tests.breakages import BREAKAGES, REPOSITORY, Breakage


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.name)
def test_the_text_that_a_breakage_replaces_is_in_the_code_once(breakage: Breakage) -> None:
    assert breakage.found() == 1, f"{breakage.file} has changed: let tests/breakages.py follow"
    assert (REPOSITORY / breakage.test.partition("::")[0]).exists()
