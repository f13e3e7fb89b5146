"""The user that docs/operations.md tells people to make: the tests of stores run as it."""

from __future__ import annotations

import re
from pathlib import Path

MANUAL = Path(__file__).resolve().parent.parent.parent / "docs" / "operations.md"
LEAST_USER = "visits"
PASSWORD = "canary-71f0c2"


def rules(*, cluster: bool = False) -> list[str]:
    """Return the words behind `ACL SETUSER visits` in the manual, in a cluster those of both lines."""
    lines = re.findall(rf"^    ACL SETUSER {LEAST_USER} (.*)$", MANUAL.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) == 2, lines
    return " ".join(lines if cluster else lines[:1]).replace("PASSWORD", PASSWORD).split()


def user_options(*, cluster: bool = False) -> list[str]:
    """Return the options that start a server with this user."""
    return ["--user", LEAST_USER, *rules(cluster=cluster)]
