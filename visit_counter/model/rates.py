"""How many visits a client may send in which time. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

_RATE = re.compile(r"([0-9]{1,9})/(second|minute|hour|day)")
_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}


class Rate(NamedTuple):
    """So many visits in so many seconds; 0 visits for no limit."""

    visits: int
    seconds: int


def parse_rate(text: str) -> Rate:
    """Return what `60/minute` says; "" for no limit. Raises ValueError."""
    if not text:
        return Rate(0, 1)
    found = _RATE.fullmatch(text)
    if not found or not int(found[1]):
        raise ValueError(f"no rate: {text}")
    return Rate(int(found[1]), _SECONDS[found[2]])
