"""The worker's own answers against those of gunicorn's stock worker running the same app: no client can tell which."""

from __future__ import annotations

import json
import re
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.servers import GunicornServer, running_valkeys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WORKERS = ("gthread", "visit_counter.server.worker.VisitWorker")
Message = tuple[bytes, list[bytes], bytes]


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[int]]:
    """Ports of the service under each worker; both have fresh counts that nothing flushes meanwhile."""
    folder = tmp_path_factory.mktemp("differential")
    with running_valkeys(folder / "valkey_0", folder / "valkey_1") as shards:
        environ = {
            "VISITS_SHARDS": ",".join(f"{name}={shard.url}" for name, shard in zip("ab", shards, strict=True)),
            "VISITS_FLUSH_SECONDS": "3600",
            "VISITS_CACHE_SECONDS": "3600",
            "PYTHONHASHSEED": "0",  # Allow lists a set, in the order of its hashes
        }
        servers = [GunicornServer(folder / worker, "-w", "1", "-k", worker, port=0, **environ) for worker in WORKERS]
        try:
            yield [server.start().port for server in servers]
        finally:
            for server in servers:
                server.stop()


def converse(port: int, data: bytes) -> list[Message]:
    """Send these bytes, end our side, and return all answers: status line, sorted fields, body."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.settimeout(20)
        # <127> stands for so many bytes, which keeps the examples readable.
        sock.sendall(re.sub(rb"<(\d+)>", lambda found: b"x" * int(found[1]), data))
        with suppress(OSError):  # the server has answered and closed already
            sock.shutdown(socket.SHUT_WR)
        received = b""
        while more := sock.recv(65536):
            received += more
    return list(messages(received, heads=data.startswith(b"HEAD")))


def messages(received: bytes, *, heads: bool) -> Iterator[Message]:
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        status, *fields = head.split(b"\r\n")
        length = re.search(rb"(?im)^content-length: (\d+)", head)
        end = int(length[1]) if length and not heads else 0
        kept = sorted(field for field in fields if not field.startswith((b"Date:", b"Server:")))
        yield status, kept, received[:end]
        received = received[end:]


def usually(usual: list[bytes], *others: bytes) -> st.SearchStrategy[bytes]:
    return st.one_of(st.sampled_from(usual), st.sampled_from([*usual, *others]))


METHODS = usually([b"POST", b"GET"], b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"get", b"PO", b"G@T", b"PURGE")
PIECES = st.sampled_from(
    [
        b"\xc3\xa9",
        b"\t",
        b"%41" * 86,
        *rb"""a b a/b / // %2F %61 %C3%A9 %E2%82%AC %00 %0A %7F %C2%85 %FF %C3 % %4 %zz . .. + %20 ~ ; = & ?q ? #f
    \ " < | ^ { @ ! <127> : %25 %3F %23""".split(),
    ]
)
PATHS = st.one_of(
    st.builds(lambda pieces: b"/visits/" + b"".join(pieces), st.lists(PIECES, min_size=1, max_size=4)),
    st.builds(
        lambda start, pieces, end: start + b"".join(pieces) + end,
        st.sampled_from([b"/pixel/", b"/badge/", b"/visits?", b"/visits?page="]),
        st.lists(PIECES | st.sampled_from([b".gif", b".svg", b"&page=", b"label=", b"hit=1", b"%2Egif"]), max_size=4),
        st.sampled_from(
            [b"", b".gif", b".svg", b".json", b".svg?hit=1", b".svg?label=%FF", b".svg?style=digits&hit=1"]
        ),
    ),
    st.sampled_from(
        [
            b"/visits/a HTTP/1.1 b",
            *b"""/visits/ /visits / * /nothing //visits/a /visits/../visits/a http://a/visits/a
        /%76isits/a /visits%2Fa /VISITS/a visits/a""".split(),
        ]
    ),
)
VERSIONS = usually([b"HTTP/1.1"], b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/1.1 ", b"http/1.1", b"HTTP/11", b"")
HOSTS = usually(
    [b"Host: counter.example\r\n"],
    *(b"", b"Host:\r\n", b"Host: a_b:80\r\n", b"Host: [::1]:8000\r\n", b"Host: a b\r\n", b"Host: a..b\r\n"),
    *(b"Host: a\r\nHost: a\r\n", b"Host: " + b"x" * 64 + b"\r\n", b"Host: a,b\r\n", b"host : a\r\n", b"Host: \xe9\r\n"),
    *(b"Host: a@b\r\n", b"Host: a:port\r\n", b"Host: a/b\r\n", b"Host: .\r\n", b"Host: xn--a\r\n", b"Host: a.\r\n"),
)
FIELDS = st.sampled_from(
    b"""Connection: close|Connection: Keep-Alive|Connection:|Connection: close, x|Connection: upgrade\r\nUpgrade: h2c
    |Expect: 100-continue|Expect: 200-ok|X_Y: z|SCRIPT_NAME: /v|X-Forwarded-Proto: https|X-Forwarded-Ssl: on
    |X-Forwarded-Ssl: off|X-Forwarded-For: 1.2.3.4|Cookie: a=b|Range: bytes=0-1|If-None-Match: *|Origin: http://b
    |Accept: text/html|Content-Type: text/plain|Content-Type: application/json|Content-Encoding: gzip|X: \x00|X: \x7f
    |X: \rb|: y|X|X: <8200>|TE: trailers|Transfer-Encoding: identity|Transfer-Encoding: \x0bchunked
    |X-HTTP-Method-Override: PUT""".replace(b"\n    |", b"|").split(b"|")
).map(lambda field: field + b"\r\n") | st.sampled_from([b"X: y\n", b" folded\r\n"])
BODIES = usually(
    [b"\r\n"],
    *(
        b"Content-Length: 2\r\n\r\nhi",
        b"Content-Length: 0\r\n\r\n",
        b"Content-Length: 3\r\n\r\nhi",
        b"Content-Length: 1\r\n\r\nhi",
    ),
    *(
        b"Content-Length: -1\r\n\r\n",
        b"Content-Length: +2\r\n\r\nhi",
        b"Content-Length: 2, 2\r\n\r\nhi",
        b"Content-Length:\r\n\r\n",
    ),
    *(b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi", b"Content-Length: 99999999999999999999\r\n\r\nhi"),
    *(b"Content-Length: 33000\r\n\r\n<33000>", b"Content-Length: 65537\r\n\r\n"),
    b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    b"Transfer-Encoding: Chunked\r\n\r\n2;a=b\r\nhi\r\n0\r\nT: u\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhi\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi",
    b"Transfer-Encoding: gzip\r\n\r\nhi",
    b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\nhi",
    b"",
)
REQUESTS = st.builds(
    lambda method, path, version, host, fields, body: (
        b"%b %b %b\r\n%b%b%b" % (method, path, version, host, fields, body)
    ),
    *(METHODS, PATHS, VERSIONS, HOSTS),
    st.lists(FIELDS, max_size=2).map(b"".join),
    BODIES,
)


@settings(max_examples=400, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(requests=st.lists(REQUESTS, min_size=1, max_size=2))
def test_both_workers_answer_the_same(ports: list[int], requests: list[bytes]) -> None:
    stock, ours = (converse(port, b"".join(requests)) for port in ports)
    assert ours == stock


def test_both_workers_count_the_same_on_a_kept_connection(ports: list[int]) -> None:
    visit = b"POST /visits/kept/page HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"
    read = b"GET /visits/kept/page HTTP/1.1\r\nHost: a\r\n\r\n"
    conversation = (visit + read) * 20
    stock, ours = (converse(port, conversation) for port in ports)
    assert len(ours) == 40
    assert ours == stock


@pytest.mark.parametrize(
    "body",
    [
        b"zz\r\nhi\r\n0\r\n\r\n",
        b"2\r\nhi!!0\r\n\r\n",
        b"2\r\nhi",
        b"-2\r\nhi\r\n0\r\n\r\n",
        b"2;=\r\nhi\r\n0\r\n\r\n",
        b"0\r\nbad trailer\r\n\r\n",
        b"<9000>",
    ],
)
@pytest.mark.parametrize("line", [b"POST /visits/broken", b"GET /visits/broken", b"POST /nothing"])
def test_a_malformed_body_is_one_400_and_the_end_of_the_connection(ports: list[int], line: bytes, body: bytes) -> None:
    head = b"%b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" % line
    for port in ports:
        ((status, fields, said),) = converse(port, head + body + b"GET /visits/broken HTTP/1.1\r\nHost: a\r\n\r\n")
        assert status == b"HTTP/1.1 400 BAD REQUEST"
        assert b"Content-Type: application/problem+json" in fields
        assert b"Connection: close" in fields
        assert json.loads(said)["detail"] == "the body is malformed or cut short"
        ((_, _, count),) = converse(port, b"GET /visits/broken HTTP/1.1\r\nHost: a\r\n\r\n")
        assert json.loads(count)["visits"] == 0


def test_a_flood_of_garbage_is_answered_with_problems_and_one_line_in_the_log(
    gunicorn: Callable[..., GunicornServer],
) -> None:
    garbage = (b"\x16\x03\x01\x02\r\n\r\n", b"GARBAGE\r\n\r\n", b"GET / HTTP/1.1\r\nbad name: x\r\n\r\n")
    for worker in WORKERS:
        server = gunicorn("-k", worker, VISITS_PROFILE="basic").start()
        before = server.log.count("\n")
        for number in range(30):
            ((status, fields, said),) = converse(server.port, garbage[number % 3])
            assert status.startswith(b"HTTP/1.1 400")
            assert b"Content-Type: application/problem+json" in fields
            assert json.loads(said)["status"] == 400
            head = b"POST /visits/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
            assert converse(server.port, head)[0][0] == b"HTTP/1.1 400 BAD REQUEST"
        assert server.log.count("\n") - before == 1, server.log
        assert "Invalid request from ip=127.0.0.1" in server.log
        server.stop()
