"""What the service and its tests need: ranges in pyproject.toml, pins in requirements.txt."""

from __future__ import annotations

import re
import tomllib

from packaging.requirements import Requirement

from tests.support.servers import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8")
REQUIREMENTS = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8")


def pins(text: str) -> dict[str, str]:
    """Return the version of each pinned package."""
    return dict(re.findall(r"^([\w-]+)==([^\s\\]+)", text, re.MULTILINE))


def test_the_package_needs_what_the_service_is_pinned_to_and_nothing_of_the_tests() -> None:
    service = pins(REQUIREMENTS.partition("# Its tests")[0])
    ranges = {each.name: each.specifier for each in map(Requirement, PROJECT["dependencies"])}
    assert ranges.keys() == service.keys()
    assert [name for name, version in service.items() if version not in ranges[name]] == []


def test_the_images_lock_file_has_the_pins_of_the_service_and_a_hash_for_every_package() -> None:
    service, locked = pins(REQUIREMENTS.partition("# Its tests")[0]), pins(LOCK)
    assert service.items() <= locked.items()
    assert not locked.keys() & pins(REQUIREMENTS.partition("# Its tests")[2]).keys()
    packages = re.split(r"^(?=[a-z])", LOCK, flags=re.MULTILINE)[1:]
    assert len(packages) == len(locked)
    assert all("--hash=sha256:" in package for package in packages)
    assert "://" not in LOCK, "a lock file names no index"


def test_every_range_has_an_end() -> None:
    for each in map(Requirement, PROJECT["dependencies"]):
        assert {part.operator for part in each.specifier} == {">=", "<"}, each
