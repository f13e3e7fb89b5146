"""What the loop takes for an ordinary request, and what it leaves to gunicorn."""

from __future__ import annotations

import pytest

from visit_counter.model.answers import Ask
from visit_counter.server import http1
from visit_counter.server.http1 import Framing, Limits, RequestReader, Target, Verdict

LIMITS = Limits(
    line=8190, fields=100, field_size=8190, scheme_fields=frozenset((b"x-forwarded-proto", b"x-forwarded-ssl"))
)
FIELDS = b"Host: counter.example\r\nUser-Agent: test\r\n\r\n"


def reader() -> RequestReader:
    return RequestReader(LIMITS)


def ordinary(line: bytes, fields: bytes = FIELDS) -> bytes:
    return line + b"\r\n" + fields


POST = ordinary(b"POST /visits/home HTTP/1.1")


def test_an_ordinary_request_is_taken_whole() -> None:
    assert reader().take(POST) == (Target((Ask(True, "home"),), http10=False), Framing(0, None), len(POST))


def test_a_second_request_is_taken_like_the_first() -> None:
    subject = reader()
    assert subject.take(POST) == subject.take(POST)


def test_what_follows_a_request_is_left_for_later() -> None:
    subject = reader()
    for _ in range(2):
        taken = subject.take(POST + b"GET /visi")
        assert isinstance(taken, tuple)
        assert taken[2] == len(POST)


@pytest.mark.parametrize(
    ("path", "page"),
    [
        (b"home", "home"),
        (b"a/b/c", "a/b/c"),
        (b"a/", "a/"),
        (b"/a", "/a"),
        (b"a//b", "a//b"),
        (b"%2Fa", "/a"),
        (b"a+b", "a+b"),
        (b"caf%C3%A9", "café"),
        (b"a%2Fb", "a/b"),
        (b"%25", "%"),
        (b"x" * 255, "x" * 255),
    ],
)
def test_a_page_is_what_follows_visits_percent_decoded(path: bytes, page: str) -> None:
    assert http1.parse_line(b"GET /visits/" + path + b" HTTP/1.1") == Target((Ask(False, page),), http10=False)


@pytest.mark.parametrize(
    "line",
    [
        b"PUT /visits/a HTTP/1.1",
        b"HEAD /visits/a HTTP/1.1",
        b"post /visits/a HTTP/1.1",
        b"GET /visits/ HTTP/1.1",
        b"GET /visits HTTP/1.1",
        b"GET //visits/a HTTP/1.1",
        b"GET /visits/a?b HTTP/1.1",
        b"GET /visits/a#b HTTP/1.1",
        b"GET /visits/a%00 HTTP/1.1",
        b"GET /visits/a%0A HTTP/1.1",
        b"GET /visits/a%7F HTTP/1.1",
        b"GET /visits/a% HTTP/1.1",
        b"GET /visits/a%4 HTTP/1.1",
        b"GET /visits/a%GG HTTP/1.1",
        b"GET /visits/%FF HTTP/1.1",
        b"GET /visits/\xc3\xa9 HTTP/1.1",
        b"GET /visits/" + b"x" * 256 + b" HTTP/1.1",
        b"GET http://counter.example/visits/a HTTP/1.1",
        b"GET  /visits/a HTTP/1.1",
        b"GET /visits/a HTTP/1.2",
        b"GET /visits/a HTTP/2.0",
        b"GET /visits/a",
        b"GET /health HTTP/1.1",
    ],
)
def test_any_other_request_line_is_left_to_flask(line: bytes) -> None:
    assert http1.parse_line(line) is None
    assert reader().take(ordinary(line)) is Verdict.UNUSUAL


@pytest.mark.parametrize(
    ("fields", "framing"),
    [
        (b"Host: a\r\nContent-Length: 3\r\n\r\nabc", Framing(3, None)),
        (b"Host: [::1]:8000\r\nConnection: close\r\n\r\n", Framing(0, close=True)),
        (b"Host: my_service:8000\r\nConnection: Keep-Alive\r\n\r\n", Framing(0, close=False)),
        (b"Host: a\r\nX-Forwarded-Proto: https\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n", Framing(0, None)),
    ],
)
def test_framing_is_read_from_ordinary_fields(fields: bytes, framing: Framing) -> None:
    taken = reader().take(ordinary(b"POST /visits/a HTTP/1.1", fields))
    assert isinstance(taken, tuple)
    assert taken[1] == framing


@pytest.mark.parametrize(
    "fields",
    [
        b"",
        b"Host: a b\r\n",
        b"Host: a..b\r\n",
        b"Host: " + b"x" * 64 + b"\r\n",
        b"Host: a\r\nHost: a\r\n",
        b"Host: a\r\nExpect: 200-ok\r\nContent-Length: 3\r\n",
        b"Host: a\r\nTransfer-Encoding: gzip\r\n",
        b"Host: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        b"Host: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n",
        b"Host: a\r\nContent-Length: +3\r\n",
        b"Host: a\r\nContent-Length: 65537\r\n",
        b"Host: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n",
        b"Host: a\r\nConnection: close\r\nConnection: keep-alive\r\n",
        b"Host: a\r\nSCRIPT_NAME: /x\r\n",
        b"Host: a\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Ssl: off\r\n",
        b"Host: a\r\nX : y\r\n",
        b"Host: a\r\n folded\r\n",
        b"Host: a\r\nX: \x00\r\n",
        b"Host: a\r\n" + b"X: y\r\n" * 100,
        b"Host: a\r\nX: " + b"y" * 8190 + b"\r\n",
    ],
)
def test_any_other_fields_are_left_to_gunicorn(fields: bytes) -> None:
    assert reader().take(ordinary(b"POST /visits/a HTTP/1.1", fields + b"\r\n")) is Verdict.UNUSUAL


def test_unusual_fields_are_not_taken_after_an_ordinary_request_to_the_same_page() -> None:
    subject = reader()
    subject.take(POST)
    smuggling = b"Host: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert subject.take(ordinary(b"POST /visits/home HTTP/1.1", smuggling)) is Verdict.UNUSUAL


@pytest.mark.parametrize("known", [False, True])
def test_every_beginning_of_an_ordinary_request_is_incomplete(known: bool) -> None:
    subject = reader()
    request = ordinary(b"POST /visits/a HTTP/1.1", b"Host: a\r\nContent-Length: 3\r\n\r\nabc")
    if known:
        subject.take(request)
    for size in range(1, len(request)):
        assert subject.take(request[:size]) is Verdict.INCOMPLETE, request[:size]


@pytest.mark.parametrize(
    "body",
    [
        b"3\r\nabc\r\n0\r\n\r\n",
        b"3;name=value\r\nabc\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n",
        b"0\r\nTrailer: 1\r\n\r\n",
    ],
)
def test_a_chunked_request_is_waited_for_until_its_last_byte(body: bytes) -> None:
    head = ordinary(b"POST /visits/a HTTP/1.1", b"Host: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    for size in range(len(body)):
        assert reader().take(head + body[:size]) is Verdict.INCOMPLETE, body[:size]
    assert reader().take(head + body) is Verdict.UNUSUAL


@pytest.mark.parametrize(
    "body",
    [
        b"x\r\n",
        b"-1\r\n",
        b"3\r\nabcde",
        b"+1\r\nx\r\n",
        b"1" * 9000,
        b"f\r\n" + b"x" * 16,
        b"20000\r\n" + b"x" * 70000,
        b"1\r\nx\r\n" * 30_000,
    ],
)
def test_a_chunked_body_that_is_broken_or_large_is_not_waited_for(body: bytes) -> None:
    head = ordinary(b"POST /visits/a HTTP/1.1", b"Host: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert reader().take(head + body) is Verdict.UNUSUAL


@pytest.mark.parametrize("fields", [b"Content-Length: 60000", b"Transfer-Encoding: chunked"])
@pytest.mark.parametrize("path", [b"/visits/a", b"/health"])
def test_the_rest_of_a_body_is_waited_for_without_a_look_at_what_has_come(path: bytes, fields: bytes) -> None:
    subject = reader()
    head = ordinary(b"POST %b HTTP/1.1" % path, b"Host: a\r\n%b\r\n\r\n" % fields)
    body = b"x" * 60000 if b"Length" in fields else b"1;a=b\r\nx\r\n" * 5000 + b"0\r\nTrailer: t\r\n\r\n"
    assert subject.take(head) is Verdict.INCOMPLETE
    awaited = subject.awaited(head)
    assert not awaited.wants_continue
    assert awaited.is_ordinary == (path == b"/visits/a" and b"Length" in fields)
    for size in range(1000, len(body), 1000):
        assert not awaited.is_here(head + body[:size])
    assert not awaited.is_here(head + body[:-1])
    assert awaited.is_here(head + body)


def test_the_rest_of_a_head_is_looked_at_again_once_a_line_has_ended_or_as_much_has_come() -> None:
    data = b"POST /visits/a HTTP/1.1\r\nX: "
    awaited = reader().awaited(data)
    assert not awaited.is_here(data + b"y")
    assert awaited.is_here(data + b"y\r\n")
    assert awaited.is_here(data + b"y" * len(data))


@pytest.mark.parametrize(
    ("version", "value", "wants"),
    [(b"1.1", b"100-continue", True), (b"1.1", b"100-Continue", True), (b"1.0", b"100-continue", False)],
)
def test_a_client_that_expects_it_is_told_to_send_its_body(version: bytes, value: bytes, wants: bool) -> None:
    head = ordinary(b"POST /visits/a HTTP/" + version, b"Host: a\r\nContent-Length: 3\r\nExpect: %b\r\n\r\n" % value)
    subject = reader()
    assert subject.take(head) is Verdict.INCOMPLETE
    assert subject.awaited(head).wants_continue == wants
    assert subject.take(head + b"abc") is Verdict.UNUSUAL


def test_a_head_that_is_too_long_or_has_a_bare_line_feed_is_not_waited_for() -> None:
    assert reader().take(b"GET / HTTP/1.1\r\nX: y\n") is Verdict.UNUSUAL
    assert reader().take(b"GET /" + b"x" * 8200) is Verdict.UNUSUAL
    assert reader().take(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 200_000) is Verdict.UNUSUAL


@pytest.mark.parametrize(
    "line", [b"POST /visits/a HTTP/1.1 b HTTP/1.1", b"post /visits/a HTTP/1.1", b"POST /a HTTP/2.0", b"POST"]
)
def test_a_request_line_that_is_refused_gets_no_100_continue(line: bytes) -> None:
    head = ordinary(line, b"Host: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    assert reader().take(head) is Verdict.UNUSUAL


def test_no_request_is_ordinary_where_the_loop_may_not_answer() -> None:
    assert RequestReader(LIMITS, hot=False).take(POST) is Verdict.UNUSUAL


def test_the_memory_of_requests_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "MEMO_ENTRIES", 10)
    subject = reader()
    for number in range(100):
        subject.take(ordinary(b"POST /visits/%d HTTP/1.1" % number, b"Host: a\r\nX: %d\r\n\r\n" % number))
    subject.take(ordinary(b"POST /visits/a HTTP/1.1", b"Host: a\r\nX: " + b"y" * 2000 + b"\r\n\r\n"))
    for memory in (subject._targets, subject._framings):
        assert len(memory) <= 10
        assert all(len(key) <= http1.MEMO_BYTES for key in memory)
