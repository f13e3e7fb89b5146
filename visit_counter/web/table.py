"""The calls besides the two hot ones that the worker's loop answers without Flask, by the target of their request."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from visit_counter.errors import RequestError
from visit_counter.model.pages import decode_page
from visit_counter.web import badge, many, pixel

if TYPE_CHECKING:
    from visit_counter.model.calls import Asked


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
