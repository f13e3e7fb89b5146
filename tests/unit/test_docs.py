"""The documentation against the code: every route, setting and command is written down, and nothing else is."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING

import click
import pytest

from tests.support.servers import REPOSITORY
from visit_counter import create_app
from visit_counter.config.profiles import PROFILES

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask import Flask

    from visit_counter.config.settings import Settings

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
API = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
DEFAULTS = tomllib.loads((REPOSITORY / "config" / "default.toml").read_text(encoding="utf-8"))


@pytest.fixture
def app(settings: Callable[..., Settings]) -> Flask:
    """The application; its routes are the same in all profiles."""
    return create_app(settings(VISITS_PROFILE="basic"))


def test_the_api_page_has_every_route_and_no_other(app: Flask) -> None:
    there = {
        (method, re.sub(r"<\w+:(\w+)>", r"<\1>", rule.rule))
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    documented = set(re.findall(r"^## `([A-Z]+) (\S+)`$", API, re.MULTILINE))
    assert documented == there


def test_the_readme_has_every_setting_with_its_default_and_no_other() -> None:
    rows = dict(re.findall(r"^\| `(VISITS_\w+)` \| (.*?) \|", README, re.MULTILINE))
    assert sorted(rows) == sorted(name.upper() for name in DEFAULTS)
    for name, default in DEFAULTS.items():
        assert rows[name.upper()] == (f"`{default}`" if default != "" else ""), name


def test_the_readme_has_every_command_and_option_and_no_other(app: Flask) -> None:
    there = set()
    for group_name in ("visits", "shards"):
        group = app.cli.commands[group_name]
        assert isinstance(group, click.Group)
        for name, command in group.commands.items():
            there.add(f"{group_name} {name}")
            options = [option for parameter in command.params for option in parameter.opts if option.startswith("--")]
            assert [option for option in options if option not in README] == []
    assert set(re.findall(r"flask ((?:visits|shards) [a-z]+)", README)) == there


def test_the_readme_has_every_profile() -> None:
    rows = re.findall(r"^\| `([a-z]+)` \|", README, re.MULTILINE)
    assert rows == list(PROFILES)


def test_the_first_command_stands_in_the_first_ten_lines() -> None:
    command = "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt && .venv/bin/"
    assert any(line.strip() == f"{command}gunicorn wsgi:app" for line in README.splitlines()[:10])
    assert f"{command}pytest\n" in README


@pytest.mark.parametrize(
    "page",
    ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((REPOSITORY / "docs").glob("*.md")))],
)
def test_links_lead_somewhere(page: str) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target]
    assert [target for target in targets if target and not (REPOSITORY / page).parent.joinpath(target).exists()] == []


def test_the_architecture_page_stays_short() -> None:
    """But for its picture, which has a line for each module: `test_house` compares it with the tree."""
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    before, _, rest = text.partition("```house\n")
    assert len((before + rest.partition("```")[2]).splitlines()) < 200
