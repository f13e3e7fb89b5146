"""What the service and its tests need: ranges in pyproject.toml, pins in requirements.txt."""

from __future__ import annotations

import re
import tomllib

from packaging.requirements import Requirement

from tests.support.servers import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8")


def pins(text: str) -> dict[str, str]:
    """Return the version of each pinned package."""
    return dict(re.findall(r"^([\w-]+)==([^\s\\]+)", text, re.MULTILINE))


def test_the_package_needs_what_the_service_is_pinned_to_and_nothing_of_the_tests() -> None:
    service = pins(REQUIREMENTS.partition("# Its tests")[0])
    ranges = {each.name: each.specifier for each in map(Requirement, PROJECT["dependencies"])}
    assert ranges.keys() == service.keys()
    assert [name for name, version in service.items() if version not in ranges[name]] == []


def test_every_range_has_an_end() -> None:
    for each in map(Requirement, PROJECT["dependencies"]):
        assert {part.operator for part in each.specifier} == {">=", "<"}, each
