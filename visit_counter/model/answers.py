"""What a hot call asks, what comes of it, and the answer's bytes, for the blueprint and the worker's loop alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from visit_counter.errors import VisitCounterError

if TYPE_CHECKING:
    from visit_counter.model.visits import Visit

# What a client may send along with a request.
MAX_BODY_BYTES = 64 * 1024
CONTENT_TYPE = "application/json"
# A count is true for one moment: no browser or proxy may keep it.
CACHE_CONTROL = "no-store"
HOT_FIELDS = (("Content-Type", CONTENT_TYPE), ("Cache-Control", CACHE_CONTROL))


@dataclass(frozen=True, slots=True)
class Ask:
    """One of the two hot calls: count so many visits of a page, or read its count."""

    is_visit: bool
    page: str
    visits: int = 1
    # What is counted if this is a visit. Made once, since the loop keeps its asks for the next same request.
    visit: Visit = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "visit", (self.page, self.visits))


class Answer(NamedTuple):
    """200: the count of a page, and who served it."""

    visits: int
    served_via: str

    @property
    def status(self) -> int:
        """The HTTP status."""
        return 200

    def to_json(self) -> bytes:
        """Return the body of the answer; `served_via` is a settings-checked name that needs no escaping."""
        return b'{"visits": %d, "served_via": "%b"}' % (self.visits, self.served_via.encode())


class Accepted(NamedTuple):
    """202: the visit is in the journal, and the stored part of the count is unknown; `pending` is the other part."""

    pending: int
    served_via: str

    @property
    def status(self) -> int:
        """The HTTP status."""
        return 202

    def to_json(self) -> bytes:
        """Return the body of the answer."""
        return b'{"visits": null, "pending": %d, "served_via": "%b"}' % (self.pending, self.served_via.encode())


# What comes of an ask. None: it has to wait for a shard, and nothing was recorded; it may be asked again. An
# UncertainError: nobody knows whether the visit is counted, so it is never asked again. Any other error: it is surely
# not counted.
Outcome = Answer | Accepted | VisitCounterError | None
