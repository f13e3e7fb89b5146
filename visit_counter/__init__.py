"""Visit Counter: counts visits to web pages, exactly once.

`create_app` is loaded when it is asked for: the supervisor of the embedded shards needs neither Flask nor redis-py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from visit_counter.application import create_app

__all__ = ["create_app"]


def __getattr__(name: str) -> object:
    if name != "create_app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from visit_counter.application import create_app  # noqa: PLC0415 - see above

    return create_app
