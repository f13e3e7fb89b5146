"""A call that asks for counts or counts visits, and how its answer is made; pure, for any server of HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from visit_counter.model.answers import Ask, Outcome

# What may be kept by nobody, as image proxies understand it: `no-cache` alone is not enough for all of them.
NEVER_KEPT = (
    ("Cache-Control", "max-age=0, no-cache, no-store, must-revalidate"),
    ("Expires", "0"),
    ("Pragma", "no-cache"),
)


class Reply(NamedTuple):
    """An answer to a call: its status, its header fields but Content-Length, and its body."""

    status: int
    fields: tuple[tuple[str, str], ...]
    body: bytes


if TYPE_CHECKING:
    # Makes the answer of what came of each ask, in order.
    MakeReply = Callable[[Sequence[Outcome]], Reply]


class Asked(NamedTuple):
    """What a call asks the counter, and the function that makes its answer."""

    asks: tuple[Ask, ...]
    reply: MakeReply
