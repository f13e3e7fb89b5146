"""The calls besides the two hot ones that the worker's loop answers without Flask, by the target of their request."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from visit_counter.errors import RateError, RequestError
from visit_counter.model.calls import Asked, Reply
from visit_counter.model.pages import decode_page
from visit_counter.model.problems import problem_of
from visit_counter.web import badge, many, pixel
from visit_counter.web.calls import guarded, reply_hot

if TYPE_CHECKING:
    from visit_counter.model.answers import Ask
    from visit_counter.model.calls import MakeReply
    from visit_counter.statistics.guards import Guards, Sent


class LoopCalls:
    """What the worker's loop needs of the calls: which there are, and whether a visit is counted."""

    def __init__(self, guards: Guards) -> None:
        self._guards = guards
        self.find = find_call

    @property
    def are_guarded(self) -> bool:
        """Whether visits have to be judged."""
        return self._guards.are_active

    def judge(self, asks: tuple[Ask, ...], make_reply: MakeReply | None, by: Sent) -> Asked:
        """Return what a call asks once its visit was judged; nothing, and the problem as its answer, if it is refused.

        Without `make_reply` it is one of the two hot calls.
        """
        try:
            return guarded(Asked(asks, make_reply or reply_hot), self._guards, by)
        except RateError as error:
            problem = Reply(*problem_of(error))
            return Asked((), lambda _: problem)


def find_call(target: bytes) -> Asked | None:
    """Return what a GET of this target asks; None where Flask is to answer it, also with an error."""
    path, _, query = target.partition(b"?")
    try:
        if path == b"/visits":
            return many.asked_counts(query)
        if path.startswith(b"/pixel/") and path.endswith(b".gif"):
            return pixel.asked(_page(path, b"/pixel/"), counts=True)
        if path.startswith(b"/badge/") and path.endswith(b".svg"):
            return badge.asked_svg(_page(path, b"/badge/"), query, may_count=True)
    except RequestError:
        pass
    return None


def _page(path: bytes, prefix: bytes) -> str:
    return decode_page(unquote_to_bytes(path[len(prefix) : -len(b".xyz")]))
