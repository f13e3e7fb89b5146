"""The bytes of responses that the worker's loop sends. No I/O."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from visit_counter.model import answers

if TYPE_CHECKING:
    from collections.abc import Sequence

_TIMEOUT_BODY = b'{"type": "about:blank", "title": "Request Timeout", "status": 408}'
# The answer to a client that has not sent its whole request in time.
TIMEOUT_RESPONSE = (
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Type: application/problem+json\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_TIMEOUT_BODY), _TIMEOUT_BODY)
)
CONTINUE_RESPONSE = b"HTTP/1.1 100 Continue\r\n\r\n"


def status_line(status: int) -> str:
    """Return the status as Flask words it."""
    return f"{status} {HTTPStatus(status).phrase.upper()}"


ANSWER_FIELDS = answers.HOT_FIELDS


class Heads:
    """The heads of responses, up to the value of Content-Length; the heads of the hot calls' answers are made ahead."""

    def __init__(self, server: str, date: str, fields: Sequence[tuple[str, str]] = ()) -> None:
        """Make heads with these fields beside those of each answer."""
        self._server, self._date = server, date
        self._fields = tuple(fields)
        self._kept: dict[tuple[int, tuple[tuple[str, str], ...], bool, bool], bytes] = {}
        # The key: the status, whether the request is HTTP/1.0, whether the connection closes.
        self.ready = {
            (status, http10, close): self.make(status, ANSWER_FIELDS, http10=http10, close=close)
            for status in (200, 202)
            for http10 in (False, True)
            for close in (False, True)
        }

    def kept(self, status: int, fields: tuple[tuple[str, str], ...], *, http10: bool, close: bool) -> bytes:
        """Do as `make`, for fields that many responses share: each head is made once and kept."""
        key = (status, fields, http10, close)
        head = self._kept.get(key)
        if head is None:
            head = self._kept[key] = self.make(status, fields, http10=http10, close=close)
        return head

    def make(self, status: int, fields: Sequence[tuple[str, str]], *, http10: bool, close: bool) -> bytes:
        """Return the head of a response with these fields beside those that gunicorn adds."""
        more = "".join(f"{name}: {value}\r\n" for name, value in (*fields, *self._fields))
        return (
            f"HTTP/1.{0 if http10 else 1} {status_line(status)}\r\n"
            f"Server: {self._server}\r\nDate: {self._date}\r\nConnection: {'close' if close else 'keep-alive'}\r\n"
            f"{more}Content-Length: "
        ).encode()
