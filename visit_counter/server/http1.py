"""What the worker's loop must know of HTTP/1: where a request ends, and whether the loop may answer it itself.

No I/O here. This module answers two questions about a request. First: is it *ordinary*, that is, one of the two hot
calls, with nothing in its head that gunicorn or Flask would treat specially? A doubtful request is not ordinary; the
loop hands it to a thread, where gunicorn's own parser and Flask decide. Second, if it is not ordinary: is it complete,
so that the thread will not have to wait for a slow client?

Most requests repeat an earlier request line (of the same page), and many repeat an earlier block of header fields (of
the same client). The verdict on each is kept, so such a request costs two look-ups. In a new block, one regular
expression checks that every field is well-formed, and another one extracts the few fields that matter. The verdict on
these fields is kept, too, since they are the same for most clients. The memory for this is bounded.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote_to_bytes

from visit_counter.errors import PageError
from visit_counter.model.answers import MAX_BODY_BYTES, Ask
from visit_counter.model.pages import decode_page
from visit_counter.server.bodies import LENGTH, Awaited, RestOfHead, SizedBody, awaited_body
from visit_counter.statistics.guards import Sent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from visit_counter.model.calls import Asked, MakeReply

    FindCall = Callable[[bytes], Asked | None]

# How many verdicts are kept of each kind, for keys of at most MEMO_BYTES: 16 MB in the worst case, usually under 2 MB.
MEMO_ENTRIES = 8192
MEMO_BYTES = 1024

# gunicorn, werkzeug or the blueprint treat any other character specially, so they answer such a request.
_LINE = re.compile(rb"(GET|POST) /visits/((?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})+) HTTP/1\.([01])")
# The request lines that `find_call` may know, with the same characters.
_OTHER_LINE = re.compile(
    rb"GET (/(?:visits\?|pixel/|badge/)(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})+) HTTP/1\.([01])"
)
_HOST = re.compile(rb"(?:[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
# Fields that ask for something the loop does not do.
_SPECIAL = frozenset((b"transfer-encoding", b"expect", b"upgrade", b"http2-settings", b"content-encoding"))
# The allowed values of `Connection`, and whether each closes the connection; "(none)" stands for no such field.
_OPTIONS = {b"close": True, b"keep-alive": False, b"(none)": None}
_FRAMING = frozenset((b"host", b"content-length", b"content-type", b"connection"))
# RFC 9112 section 5: a token, a colon, a value without control characters, on one line. A token may also contain an
# underscore, but gunicorn treats such names specially.
_ORDINARY_FIELDS = re.compile(rb"(?:\r\n[A-Za-z0-9!#$%&'*+.^`|~-]++:[\t\x20-\x7e\x80-\xff]*+)*+\r\n\r\n")
_WELL_FORMED_LINE = re.compile(rb"[0-9A-Z!$%&'*+.^_`|~-]{3,20} [\x21-\x7e]+ HTTP/1\.[0-9]")
_WELL_FORMED_FIELDS = re.compile(rb"(?:\r\n[A-Za-z0-9!#$%&'*+.^_`|~-]++:[\t\x20-\x7e\x80-\xff]*+)*+\r\n\r\n")


class Verdict(Enum):
    """Why the loop does not answer the request in the buffer now."""

    INCOMPLETE = "the request is not all here: wait for the rest"
    UNUSUAL = "the request is gunicorn's and Flask's to judge, and all of it that is worth waiting for is here"


class Target(NamedTuple):
    """An ordinary request line: `asks` is for `VisitCounter.answer`, and `reply` makes a response of their outcomes.

    Without `reply` it is one of the two hot calls, with one ask.
    """

    asks: tuple[Ask, ...]
    http10: bool
    reply: MakeReply | None = None


class Framing(NamedTuple):
    """An ordinary block of header fields: the body's length in bytes, and whether `Connection` closes, if present."""

    body_bytes: int
    close: bool | None


class Limits(NamedTuple):
    """gunicorn's limits on a head, as its parser takes them."""

    line: int
    fields: int
    field_size: int
    scheme_fields: frozenset[bytes]


Taken = tuple[Target, Framing, int]


class RequestReader:
    """Takes one request after another off a connection's buffer."""

    def __init__(
        self, limits: Limits, *, hot: bool = True, special: Iterable[bytes] = (), find_call: FindCall | None = None
    ) -> None:
        """Judge by these limits; no request is ordinary without `hot`, nor one with a field named in `special`.

        `find_call` returns the asks of a GET of another target, if the loop can answer it like the hot calls.
        """
        self._limits = limits
        self._find_call = find_call
        self._special = _SPECIAL.union(special)
        self._hot = hot
        self._targets: dict[bytes, Target] = {}
        # The keys are whole blocks of header fields, and also the extracted fields that matter.
        self._framings: dict[bytes, Framing] = {}
        self._decisive = decisive_fields((*limits.scheme_fields, *self._special))

    def take(self, data: bytes) -> Taken | Verdict:
        """Return the ordinary request at the start of `data` and where it ends, or why there is none."""
        head_end = data.find(b"\r\n\r\n") + 4
        if head_end > 3:
            line_end = data.find(b"\r\n")
            line, block = data[:line_end], data[line_end:head_end]
            target, framing = self._targets.get(line), self._framings.get(block)
            if target is None or framing is None:
                return self._judge(data, line, block)
            end = head_end + framing.body_bytes
            if end <= len(data):
                return target, framing, end
            return Verdict.INCOMPLETE
        return self._judge_part(data)

    def _judge(self, data: bytes, line: bytes, block: bytes) -> Taken | Verdict:
        """Do as `take`, for a complete head with a new line or a new block."""
        head_end = len(line) + len(block)
        target = self._target(line)
        framing = self._framing(block)
        if target is None or framing is None:
            body = self._awaited_body(line, block, head_end)
            return Verdict.UNUSUAL if body is None or body.is_here(data) else Verdict.INCOMPLETE
        end = head_end + framing.body_bytes
        return (target, framing, end) if end <= len(data) else Verdict.INCOMPLETE

    def _target(self, line: bytes) -> Target | None:
        """Return the target of an ordinary request line, or None for any other line."""
        target = self._targets.get(line)
        if target is None and self._hot and len(line) <= self._limits.line:
            target = parse_line(line) or (self._find_call and parse_other_line(line, self._find_call))
            if target:
                _remember(self._targets, line, target)
        return target

    def _framing(self, block: bytes) -> Framing | None:
        """Return the framing of an ordinary block of header fields, or None for any other block."""
        # A block that is no longer than one field may be contains no field that is too long.
        if len(block) > self._limits.field_size or block.count(b"\n") - 2 > self._limits.fields:
            return None
        if not _ORDINARY_FIELDS.fullmatch(block):
            return None
        # Most clients send the same text in the fields that matter.
        decisive = b"\r\n".join(self._decisive.findall(block))
        framing = self._framings.get(decisive)
        if framing is None:
            framing = parse_fields(fields_of(decisive), self._limits.scheme_fields, self._special)
            if framing is None:
                return None
            _remember(self._framings, decisive, framing)
        _remember(self._framings, block, framing)
        return framing

    def awaited(self, data: bytes) -> Awaited:
        """Return what an INCOMPLETE request lacks."""
        head_end = data.find(b"\r\n\r\n") + 4
        if head_end <= 3:
            return RestOfHead(len(data))
        line = data[: data.find(b"\r\n")]
        block = data[len(line) : head_end]
        framing = self._framing(block)
        if framing is not None and self._target(line) is not None:
            return SizedBody(head_end + framing.body_bytes)
        return self._awaited_body(line, block, head_end) or SizedBody(0)

    def _awaited_body(self, line: bytes, block: bytes, head_end: int) -> Awaited | None:
        """Return the body of a request that is not ordinary; None if gunicorn refuses the request anyway."""
        limits = self._limits
        is_refused = (
            len(line) > limits.line
            or not _WELL_FORMED_LINE.fullmatch(line)
            or block.count(b"\r\n") - 2 > limits.fields
            or not _WELL_FORMED_FIELDS.fullmatch(block)
            or (len(block) > limits.field_size and max(map(len, block.split(b"\r\n"))) + 2 > limits.field_size)
        )
        return None if is_refused else awaited_body(line, fields_of(block), head_end)

    def _judge_part(self, data: bytes) -> Verdict:
        """Return INCOMPLETE if gunicorn may accept this head once it is complete, else UNUSUAL.

        The head must be within the limits, and every line must end in CRLF.
        """
        limits = self._limits
        is_too_long = len(data) > limits.line + limits.fields * (limits.field_size + 2) + 4
        if is_too_long or (len(data) > limits.line + 2 and data.find(b"\r\n", 0, limits.line + 2) < 0):
            return Verdict.UNUSUAL
        if data.count(b"\n") != data.count(b"\r\n"):
            return Verdict.UNUSUAL
        return Verdict.INCOMPLETE


def decisive_fields(more: Iterable[bytes]) -> re.Pattern[bytes]:
    """Return an expression that finds, in a well-formed block, every field that the verdict depends on."""
    names = sorted({*_SPECIAL, *_FRAMING, *more})
    first = bytes(sorted({letter for name in names for letter in (name[:1].lower() + name[:1].upper())}))
    # The set of first letters passes over most other fields at once.
    return re.compile(rb"\r\n(?=[%b])((?i:%b):[^\r]*+)" % (re.escape(first), b"|".join(map(re.escape, names))))


def fields_of(block: bytes) -> list[tuple[bytes, bytes]]:
    """Return the fields of well-formed lines: names in lower case, values without the blanks around them."""
    lines = [line.partition(b":") for line in block.split(b"\r\n") if line]
    return [(name.lower(), value.strip(b" \t")) for name, _, value in lines]


_SENT = re.compile(rb"\r\n(?=[uUxX])(?i:(user-agent|x-forwarded-for)):[\t ]*([^\r]*)")


def sent_of(head: bytes, peer: str) -> Sent:
    """Return the sender's address fields and User-Agent from a well-formed head."""
    found: dict[bytes, list[str]] = {}
    for name, value in _SENT.findall(head):
        found.setdefault(name.lower(), []).append(value.strip().decode("latin-1"))
    agents = found.get(b"user-agent", [""])
    return Sent(peer, ",".join(found.get(b"x-forwarded-for", ())), agents[0])


def _remember(memory: dict[bytes, Any], key: bytes, value: Target | Framing) -> None:
    if len(key) > MEMO_BYTES:
        return
    if len(memory) >= MEMO_ENTRIES:
        # After clearing, each key is parsed once more. Removing the entries one by one would slow every request.
        memory.clear()
    memory[key] = value


def parse_line(line: bytes) -> Target | None:
    """Return the target of a request line of the two hot calls, or None if it is not ordinary."""
    found = _LINE.fullmatch(line)
    if not found:
        return None
    try:
        page = decode_page(unquote_to_bytes(found[2]))
    except PageError:
        return None
    return Target((Ask(found[1] == b"POST", page),), found[3] == b"0")


def parse_other_line(line: bytes, find_call: FindCall) -> Target | None:
    """Return the target of a request line that is no hot call but that the loop can answer like one, or None."""
    found = _OTHER_LINE.fullmatch(line)
    asked = find_call(found[1]) if found else None
    return Target(asked.asks, found[2] == b"0", asked.reply) if found and asked else None


def parse_fields(
    fields: Sequence[tuple[bytes, bytes]],
    scheme_fields: frozenset[bytes] = frozenset(),
    special: frozenset[bytes] = _SPECIAL,
) -> Framing | None:
    """Return the framing in these fields (with lower-case names), or None if any of them is not ordinary."""
    names, named = [name for name, _ in fields], dict(fields)
    if any(name in special or b"_" in name for name in names):
        return None
    # gunicorn accepts each of these fields only once, and of several fields for the scheme it may refuse one.
    if any(names.count(name) > 1 for name in _FRAMING) or sum(name in scheme_fields for name in names) > 1:
        return None
    length, option = named.get(b"content-length", b"0"), named.get(b"connection", b"(none)").lower()
    if not _HOST.fullmatch(named.get(b"host", b"")) or option not in _OPTIONS:
        return None
    if not LENGTH.fullmatch(length) or int(length) > MAX_BODY_BYTES:
        return None
    return Framing(int(length), _OPTIONS[option])
