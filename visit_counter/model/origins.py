"""Which origins' pages may count and read from a browser. Pure.

An origin is the scheme, host and port of the page that a script runs in (RFC 6454). This keeps copies of a site from
counting, and no forger: what is not a browser may send any `Origin`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

EVERY = ("*",)
_ORIGIN = re.compile(
    r"https?://(\*\.)?[a-z0-9-]+(\.[a-z0-9-]+)*(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?|null"
)

Fields = tuple[tuple[str, str], ...]


def parse_origins(text: str) -> tuple[str, ...]:
    """Return the origins of a comma list; raise ValueError for what is none."""
    origins = tuple(part.strip().lower().removesuffix("/") for part in text.split(","))
    wrong = [origin for origin in origins if not _ORIGIN.fullmatch(origin)]
    if wrong and origins != EVERY:
        raise ValueError(f"no origin: {wrong[0]}")
    return origins


class Origins:
    """The origins that are allowed; `*.` stands for one label or more."""

    def __init__(self, allowed: Sequence[str] = EVERY) -> None:
        self.are_all = tuple(allowed) == EVERY
        patterns = [re.escape(origin).replace(r"\*\.", "(?:[a-z0-9-]+\\.)+") for origin in allowed]
        self._allowed = re.compile("|".join(patterns))

    def allows(self, origin: str | None) -> bool:
        """Tell whether a request with this `Origin` may count; one without comes from no other site's script."""
        return self.are_all or origin is None or self._allowed.fullmatch(origin.lower()) is not None

    def fields(self, origin: str | None) -> Fields:
        """Return the header fields that let the pages of an origin read an answer."""
        if self.are_all:
            return (("Access-Control-Allow-Origin", "*"),)
        vary = (("Vary", "Origin"),)
        return (("Access-Control-Allow-Origin", origin), *vary) if origin and self.allows(origin) else vary
