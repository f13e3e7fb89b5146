"""What an incomplete request lacks: the loop waits for that, and then judges the request anew. No I/O."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from visit_counter.model.answers import MAX_BODY_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

# The loop waits for this much of a chunked body beyond the limit: enough for any reader to find the body too large.
_MORE_BYTES = 2048
# How many bytes the framing of a chunked body may add, and how long a line of it may be, before it is refused.
_FRAMING_BYTES = 64 * 1024
_CHUNK_LINE_BYTES = 8190
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;.*)?\Z", re.DOTALL)
# An allowed value of `Content-Length`.
LENGTH = re.compile(rb"[0-9]{1,18}")


class Awaited:
    """What an incomplete request lacks. The loop checks this after each read, so a client that drips costs little."""

    is_ordinary = True  # the loop may answer the request once the rest has come
    wants_continue = False  # the client waits for 100 Continue before it sends the body

    def is_here(self, data: bytes) -> bool:
        """Return whether enough of the request has come to judge it anew; `data` is all that has come so far."""
        raise NotImplementedError


class RestOfHead(Awaited):
    """Waits for the end of another line of the head, or until twice as much has come."""

    def __init__(self, seen: int) -> None:
        self._seen = seen

    def is_here(self, data: bytes) -> bool:
        """See Awaited."""
        return data.find(b"\n", self._seen) >= 0 or len(data) >= 2 * self._seen


class SizedBody(Awaited):
    """Waits for a body whose end is known."""

    def __init__(self, end: int) -> None:
        self._end = end

    def is_here(self, data: bytes) -> bool:
        """See Awaited."""
        return len(data) >= self._end


class ChunkedBody(Awaited):
    """Waits for the end of a chunked body (RFC 9112 section 7.1), or until it is broken or too large."""

    def __init__(self, start: int) -> None:
        self._start = start
        self._next = start  # where the next chunk begins
        self._body_bytes = 0

    def is_here(self, data: bytes) -> bool:
        """See Awaited. A chunk whose end was found is not searched again."""
        while (line_end := data.find(b"\r\n", self._next)) >= 0:
            size = _CHUNK_SIZE.match(data, self._next, line_end)
            if size is None:
                return True  # broken
            length = int(size[1], 16)
            if length == 0:
                # The last chunk, a trailer section that may be empty, and an empty line.
                return data.find(b"\r\n\r\n", line_end) >= 0 or self._is_too_large(data)
            end = line_end + 2 + length
            if data[end : end + 2] not in (b"\r\n", b"\r", b""):
                return True  # broken
            if len(data) < end + 2:
                return self._is_too_large(data, len(data) - line_end)
            self._next = end + 2
            self._body_bytes += length
            if self._is_too_large(data):
                return True
        return len(data) - self._next > _CHUNK_LINE_BYTES or self._is_too_large(data)

    def _is_too_large(self, data: bytes, of_this_chunk: int = 0) -> bool:
        return (
            self._body_bytes + of_this_chunk > MAX_BODY_BYTES + _MORE_BYTES
            or len(data) - self._start > MAX_BODY_BYTES + _MORE_BYTES + _FRAMING_BYTES
        )


def awaited_body(line: bytes, fields: Sequence[tuple[bytes, bytes]], head_end: int) -> Awaited | None:
    """Return the body that these fields announce; None if gunicorn refuses the request anyway, without its body."""
    named = dict(fields)
    expected = named.get(b"expect", b"").lower()
    if expected not in (b"", b"100-continue"):
        return None
    body: Awaited
    if coding := named.get(b"transfer-encoding"):
        # gunicorn refuses any coding that does not end in `chunked`, and any coding together with a length.
        if b"content-length" in named or not coding.lower().endswith(b"chunked"):
            return None
        body = ChunkedBody(head_end)
    else:
        length = named.get(b"content-length", b"0")
        if [name for name, _ in fields].count(b"content-length") > 1:
            return None
        if not LENGTH.fullmatch(length) or int(length) > MAX_BODY_BYTES:
            return None
        body = SizedBody(head_end + int(length))
    body.is_ordinary = False
    body.wants_continue = bool(expected) and not line.endswith(b"/1.0")
    return body
