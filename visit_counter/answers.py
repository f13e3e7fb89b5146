"""What an answer to a visit says, and its bytes: one source for the blueprint and for the worker's hot path."""

from __future__ import annotations

from typing import NamedTuple

CONTENT_TYPE = "application/json"
# A count is true for one moment: no browser or proxy may keep it.
CACHE_CONTROL = "no-store"


class Answer(NamedTuple):
    """The count of a page, who served it, and the HTTP status: 200, or 202 where the stored part is unknown."""

    visits: int
    served_via: str
    status: int = 200

    def to_json(self) -> bytes:
        """Return the body of the answer; `served_via` is a settings-checked name that needs no escaping."""
        return b'{"visits": %d, "served_via": "%b"}' % (self.visits, self.served_via.encode())
