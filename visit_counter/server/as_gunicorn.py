"""Applies gunicorn's settings to the loop: refuses unsupported ones, reads the limits, writes the access log."""

from __future__ import annotations

import select
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from gunicorn.http import Request, wsgi
from gunicorn.http.unreader import IterUnreader

from visit_counter.server.http1 import Limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from visit_counter.server.connection import Connection


def unsupported(cfg: Any) -> list[str]:
    """Return the reasons why this worker cannot serve: settings that it does not support, or a lack of epoll."""
    asked = {
        "TLS (certfile)": cfg.is_ssl,
        "http2_cleartext": cfg.http2_cleartext != "off",
        "proxy_protocol": cfg.proxy_protocol != "off",
        "protocol": cfg.protocol != "http",
        "a system without epoll": not hasattr(select, "epoll"),
    }
    return [name for name, is_asked in asked.items() if is_asked]


def limits_of(cfg: Any) -> Limits:
    """Return gunicorn's limits, as its own request object derives them from the settings."""
    probe = Request(cfg, IterUnreader([b"GET / HTTP/1.1\r\n\r\n"]), ("127.0.0.1", 0))
    return Limits(
        line=probe._fast_limit_request_line,  # noqa: SLF001  # what gunicorn passes to the same parser
        fields=probe.limit_request_fields,
        field_size=probe.limit_request_field_size,
        scheme_fields=frozenset(name.lower().encode() for name in cfg.secure_scheme_headers),
    )


def log_access(  # noqa: PLR0913 - all are named in the one call there is
    cfg: Any, log: Any, connection: Connection, *, end: int, status: str, fields: Sequence[tuple[str, str]], now: float
) -> None:
    """Log a request that the loop answered, from the same objects that gunicorn makes for any other request.

    The request ends at byte `end` of the connection's buffer.
    """
    since = now if connection.waits_since is None else connection.waits_since
    try:
        request = Request(cfg, IterUnreader([connection.buffer[:end]]), connection.client)
        response, environ = wsgi.create(request, connection.sock, connection.client, connection.server, cfg)
        response.start_response(status, list(fields))
        response.sent = int(dict(fields)["Content-Length"])
        log.access(response, request, environ, timedelta(seconds=time.monotonic() - since))
    except Exception:
        log.exception("Error in the access log")
