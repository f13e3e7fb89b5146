"""What a hot call asks, what the answer says, and its bytes: one source for the blueprint and the worker's hot path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

CONTENT_TYPE = "application/json"
# A count is true for one moment: no browser or proxy may keep it.
CACHE_CONTROL = "no-store"


@dataclass(frozen=True, slots=True)
class Ask:
    """One of the two hot calls. `was_read`: its page was just read from a shard for it; a read's answer says so."""

    is_visit: bool
    page: str
    was_read: bool = False


class Answer(NamedTuple):
    """The count of a page, who served it, and the HTTP status: 200, or 202 where the stored part is unknown."""

    visits: int
    served_via: str
    status: int = 200

    def to_json(self) -> bytes:
        """Return the body of the answer; `served_via` is a settings-checked name that needs no escaping."""
        return b'{"visits": %d, "served_via": "%b"}' % (self.visits, self.served_via.encode())
