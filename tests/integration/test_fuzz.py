"""Whatever a client sends to any route, under either worker: an answer, never a 500, never a traceback in the log.

Hypothesis makes a request; then it is sent again and again with a few bytes of it changed. `pytest --no-cov
tests/integration/test_fuzz.py --fuzz 500000` sends so many requests to each worker instead of a few.
"""

from __future__ import annotations

import json
import random
import re
import socket
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.support.servers import DEADLINE_SECONDS, GunicornServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WORKERS = ("gthread", "visit_counter.server.worker.VisitWorker")
FEW = 2000
ALTERED = 10

# What is special to one of the parsers on a request's way.
SPECIAL = b"%/?&=#;:,.\"'<>{}[]()\\*@+~-_ \t\x00\x7f\x80\xc3\xa9\xff0aZ"


@st.composite
def mostly(draw: st.DrawFn, usual: list[bytes], *others: st.SearchStrategy[bytes]) -> bytes:
    """One of the usual ones in most cases."""
    # A number in the middle: hypothesis likes those at the ends.
    return draw(st.one_of(*others)) if draw(st.integers(0, 4)) == 2 else draw(st.sampled_from(usual))


PIECES = mostly(
    b"a blog/hello / %2F caf%C3%A9 .. + %20 - // ./ .svg %F0%9F%98%80 %22 %3Cb%3E & = ; : @ * %E2%80%AE".split(),
    st.sampled_from(
        [*b"% %4 %00 %0A %7F %C2%80 %FF %ED%A0%80 caf\xc3\xa9 \xff # <b> \\ { ^ | ' ?".split(), b"x" * 256]
    ),
    st.sampled_from([b"%25" * 90, b"x" * 254, b"x" * 9000]),
    st.binary(max_size=6).map(lambda data: b"".join(b"%%%02X" % byte for byte in data)),
)
TEXTS = st.lists(PIECES, min_size=1, max_size=3).map(b"".join)
PLACES = mostly(
    b"/visits/@ /visits /visits /pixel/@.gif /badge/@.svg /badge/@.json /count.js /why /health /live /ready".split(),
    st.sampled_from(
        b"/ * @ http://counter.example/visits/@ //visits/@ /visits/ /pixel/@ /badge/.svg /counts.json".split()
    ),
)
LOOKS = b"label color style hit".split()
VALUES = st.one_of(st.sampled_from(b"1 flat digits red fff a blog/hello".split()), TEXTS)


def queries(names: list[bytes]) -> st.SearchStrategy[bytes]:
    """A query, mostly of fields with these names."""
    return st.one_of(
        st.just(b""),
        st.lists(st.tuples(mostly(names, PIECES), VALUES).map(b"=".join), min_size=1, max_size=4).map(b"&".join),
        st.sampled_from([b"page=a&" * 101, b"&" * 1001, b"label=" + b"x" * 81]),
    ).map(lambda query: b"?" + query if query else b"")


METHODS = mostly(b"GET GET POST POST HEAD OPTIONS".split(), st.sampled_from(b"PUT DELETE PATCH TRACE get X-Y".split()))
FIELD_NAMES = mostly(
    b"""Origin X-Forwarded-For User-Agent Accept-Encoding If-None-Match If-Modified-Since Content-Type Range Accept
    Access-Control-Request-Method Access-Control-Request-Headers Idempotency-Key Referer Authorization Forwarded
    Sec-Purpose Cookie Accept-Language If-Range""".split(),
    st.sampled_from(
        b"Host Content-Encoding Expect X_Y X Connection Upgrade X-Forwarded-Proto Transfer-Encoding".split()
    ),
)
FIELD_VALUES = mostly(
    b"""* https://example.org null POST gzip gzip;q=x gzip;q=0 "a" W/"a",* 192.0.2.1 [::1]:80,10.0.0.1 ::ffff:1.2.3.4
    ,,, 1.2.3.4:x bytes=0-1 bytes=9-1 application/json multipart/form-data;boundary=x application/x-www-form-urlencoded
    text/plain close keep-alive https Sun,99-Foo-2026 % a=b;c for=[:: identity""".split(),
    st.sampled_from(
        [b"", b" ", b"x" * 8000, b"\xff\xfe", b"caf\xc3\xa9", b"h2c", b"100-continue", b"Basic ====", b"chunked"]
    ),
    st.binary(max_size=12).map(lambda data: re.sub(rb"[\x00\r\n]", b"_", data)),
)
JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from(
            [0, 1, -1, 2, 10**9, 10**9 + 1, 10**30, 1.5, float("nan"), float("inf"), "a", "", "\ud800", "\0"]
        ),
        st.text(max_size=4),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["page", "visits", "id", "referrer", "query", "width", ""]), inner, max_size=3),
    ),
    max_leaves=6,
)
ENTRIES = st.fixed_dictionaries(
    {"page": st.one_of(st.sampled_from(["a", "\ud800", "\x7f"]), JSON)}, optional={"visits": JSON}
)
BATCHES = st.one_of(
    st.lists(ENTRIES, min_size=1, max_size=4).map(lambda entries: json.dumps({"visits": entries}).encode()),
    st.sampled_from(
        [b"[" * 60_000, b'{"visits":' * 6000, b"1" * 6000, b'{"visits": [{"page": "a", "visits": %b}]}' % (b"1" * 5000)]
    ),
)
BODIES = st.one_of(
    JSON.map(lambda found: json.dumps(found).encode()),
    st.sampled_from([b"\xef\xbb\xbf{}", b"x" * 65536, b"x" * 65537]),
    st.binary(max_size=20),
)


class Request(NamedTuple):
    """A request that is well-formed as HTTP, as a rule, and anything else but sensible."""

    method: bytes
    target: bytes
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes
    is_chunked: bool

    def sent(self) -> bytes:
        """Return it as it is sent."""
        head = b"%b %b HTTP/1.1\r\nHost: counter.example\r\n" % (self.method, self.target)
        head += b"".join(b"%b: %b\r\n" % field for field in self.fields)
        if self.body and self.is_chunked:
            return head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(self.body), self.body)
        return head + b"Content-Length: %d\r\n\r\n%b" % (len(self.body), self.body)

    def __repr__(self) -> str:
        """Return it as it is sent; what repeats itself stands there once, with how often."""
        runs = re.compile(rb"(?s)(.{1,10}?)\1{19,}")
        return repr(runs.sub(lambda run: b"<%b * %d>" % (run[1], len(run[0]) // len(run[1])), self.sent()))

    def altered(self, chance: random.Random) -> Request:
        """Return it with a few bytes of its target, of the value of a field, or of its body changed."""
        fields = tuple((name, _altered(value, chance, _in_a_field)) for name, value in self.fields)
        target = _altered(self.target, chance, lambda byte: b"%%%02X" % ord(byte))
        return self._replace(target=target or b"/", fields=fields, body=_altered(self.body, chance, bytes))


def _altered(data: bytes, chance: random.Random, escape: Callable[[bytes], bytes]) -> bytes:
    if not data or chance.random() < 0.5:
        return data
    # Half of the time near the end: there are the suffix, and the value of the last field.
    at = chance.randrange(0 if chance.random() < 0.5 else max(0, len(data) - 8), len(data))
    more = bytes([chance.choice(SPECIAL) if chance.random() < 0.7 else chance.randrange(256)])
    if not 0x20 < more[0] < 0x7F:
        more = escape(more)
    found = data[:at] + more + data[at + chance.randrange(3) :]
    return found if chance.random() < 0.7 else _altered(found, chance, escape)


def _in_a_field(byte: bytes) -> bytes:
    return b"" if byte in b"\r\n\0" else byte


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """A request to one of the routes, as a rule with a query and a body that the route reads."""
    method, place = draw(METHODS), draw(PLACES)
    query = draw(queries(LOOKS if place.startswith(b"/badge") else [b"page"]))
    body = draw(BATCHES if place == b"/visits" else st.one_of(st.just(b""), BODIES))
    fields = draw(st.lists(st.tuples(FIELD_NAMES, FIELD_VALUES), max_size=2))
    return Request(method, place.replace(b"@", draw(TEXTS)) + query, tuple(fields), body, draw(st.booleans()))


class Connection:
    """A connection that is made anew when the server has ended it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None

    def status(self, request: Request) -> int:
        """Return the status of the answer; 0 if the server ends the connection while the request is being sent."""
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), DEADLINE_SECONDS)
        try:
            self._socket.sendall(request.sent())
            return self._answer(request.method == b"HEAD")
        except ConnectionError:
            self.close()
            return 0

    def _answer(self, is_head: bool) -> int:
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._receive()
        head, _, received = received.partition(b"\r\n\r\n")
        status, length = int(head.split(b" ")[1]), re.search(rb"(?i)\r\ncontent-length: ([0-9]+)", head)
        if status == 100:
            return self._answer(is_head)
        left = int(length[1]) if length and not is_head and status != 304 else 0
        left -= len(received)
        while left > 0:
            left -= len(self._receive())
        if b"connection: close" in head.lower():
            self.close()
        return status

    def _receive(self) -> bytes:
        assert self._socket is not None
        more = self._socket.recv(1 << 16)
        if not more:
            raise ConnectionResetError
        return more

    def close(self) -> None:
        """End it."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


@pytest.mark.parametrize("worker", WORKERS)
def test_no_request_is_answered_with_500_or_leaves_a_traceback(
    tmp_path: Path, worker: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = request.config.option.fuzz or FEW
    server = GunicornServer(tmp_path, "-w", "1", "-k", worker, VISITS_PROFILE="basic", VISITS_REPEAT_SECONDS="1")
    found: Counter[int] = Counter()

    @settings(
        max_examples=wanted // ALTERED,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(requests(), st.integers(0, 1 << 32))
    def fuzz(first: Request, seed: int) -> None:
        chance = random.Random(seed)
        for number in range(ALTERED):
            asked = first.altered(chance) if number else first
            status = connection.status(asked)
            found[status] += 1
            assert status < 500 or status in (501, 505), asked

    try:
        with closing(Connection(server.start().port)) as connection:
            fuzz()
            assert connection.status(Request(b"GET", b"/visits/a", (), b"", is_chunked=False)) == 200
        log = server.log
    finally:
        server.stop()
    if request.config.option.fuzz:
        with capsys.disabled():
            print(f"{worker}: {found.total()} requests, by status: {dict(sorted(found.items()))}")
    assert found[200] > found.total() / 10
    assert log.count("Booting worker") == 1
    assert "Traceback" not in log
    assert "[ERROR]" not in log
