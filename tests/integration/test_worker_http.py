"""HTTP/1.1 as clients meet it: the worker on a real socket, with a stub of the service behind it."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import processes
from tests.support.http_client import Client
from tests.support.servers import wait_until
from tests.support.stub_server import StubServer

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = b"Host: counter.example\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StubServer]:
    with StubServer(tmp_path_factory.mktemp("server"), "keepalive = 30\n") as running:
        running.serving_pids()
        yield running


@pytest.fixture
def client(server: StubServer) -> Iterator[Client]:
    client = server.client()
    yield client
    client.close()


def visits(client: Client) -> int:
    reply = client.answer()
    assert reply.status == 200, reply
    return int(json.loads(reply.body)["visits"])


def test_visits_on_one_connection_are_counted_and_read(client: Client) -> None:
    for expected in (1, 2, 3):
        assert visits(client.ask("POST", "/visits/kept")) == expected
    assert visits(client.ask("GET", "/visits/kept")) == 3


def test_an_answer_says_what_the_blueprint_says(client: Client) -> None:
    hot = client.ask("GET", "/visits/never").answer()
    flask = client.ask("GET", "/visits/wait/never").answer()
    assert hot == flask
    assert hot.fields["date"]
    assert hot.fields["server"] == flask.fields["server"]


def test_pipelined_requests_are_answered_in_order_whoever_answers(client: Client) -> None:
    posts = [b"POST /visits/%b HTTP/1.1\r\n%b\r\n" % (page, HOST) for page in (b"pipe", b"wait/pipe", b"pipe", b"pipe")]
    echo = b"POST /echo HTTP/1.1\r\n%bContent-Length: 4\r\n\r\necho" % HOST
    client.send(b"".join([*posts[:2], echo, *posts[2:], echo]))
    assert [client.answer().body for _ in range(6)] == [
        b'{"visits": 1, "served_via": "stub"}',
        b'{"visits": 1, "served_via": "stub"}',
        b"echo",
        b'{"visits": 2, "served_via": "stub"}',
        b'{"visits": 3, "served_via": "stub"}',
        b"echo",
    ]


def test_a_request_that_must_wait_does_so_behind_answers_that_the_client_does_not_take(server: StubServer) -> None:
    listener = server.listener
    usual = listener.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2  # Linux doubles what is set
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
    try:
        client = Client(socket.socket())
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.sock.connect(("127.0.0.1", server.port))
        client.send(b"POST /visits/full HTTP/1.1\r\n%b\r\n" % HOST * 110)
        client.send(b"POST /visits/wait/full HTTP/1.1\r\n%b\r\n" % HOST)
        assert [visits(client) for _ in range(111)] == [*range(1, 111), 1]
        assert visits(client.ask("POST", "/visits/wait/full")) == 2
        client.close()
    finally:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, usual)


def test_a_thousand_pipelined_visits_are_all_answered(client: Client) -> None:
    client.send(b"POST /visits/thousand HTTP/1.1\r\n%b\r\n" % HOST * 1000)
    assert [visits(client) for _ in range(1000)] == list(range(1, 1001))


@pytest.mark.parametrize("page", [b"bytes", b"wait/bytes"])
def test_a_request_that_comes_byte_by_byte_is_answered(client: Client, page: bytes) -> None:
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in b"POST /visits/%b HTTP/1.1\r\n%bContent-Length: 2\r\n\r\nhi" % (page, HOST):
        client.send(bytes([byte]))
    assert visits(client) == 1
    assert visits(client.ask("POST", f"/visits/{page.decode()}")) == 2


def test_the_body_of_a_visit_is_not_taken_for_a_request(client: Client) -> None:
    assert visits(client.ask("POST", "/visits/body", body=b"GET /visits/x HTTP/1.1\r\n\r\n")) == 1
    assert visits(client.ask("GET", "/visits/body")) == 1


def test_a_chunked_visit_is_counted(client: Client) -> None:
    client.send(b"POST /visits/chunked HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n" % HOST)
    assert visits(client) == 1
    assert visits(client.ask("GET", "/visits/chunked")) == 1


def test_a_client_that_expects_100_continue_gets_it_before_its_answer(client: Client) -> None:
    client.send(b"POST /echo HTTP/1.1\r\n%bContent-Length: 4\r\nExpect: 100-continue\r\n\r\n" % HOST)
    assert client.line() == b"HTTP/1.1 100 Continue"
    assert client.send(b"body").answer().body == b"body"


def test_a_large_body_comes_back_whole(client: Client) -> None:
    body = bytes(range(256)) * 256  # as much as the service takes
    assert client.ask("POST", "/echo", body=body).answer().body == body


def test_head_has_the_fields_of_get_and_no_body(client: Client) -> None:
    length = client.ask("GET", "/visits/head").answer().fields["content-length"]
    assert client.ask("HEAD", "/visits/head").answer(has_body=False).fields["content-length"] == length
    assert visits(client.ask("GET", "/visits/head")) == 0


@pytest.mark.parametrize("page", [b"old", b"wait/old"])
def test_http_1_0_closes_unless_asked_to_keep_alive(server: StubServer, page: bytes) -> None:
    client = server.client()
    reply = client.send(b"GET /visits/%b HTTP/1.0\r\n%bConnection: keep-alive\r\n\r\n" % (page, HOST)).answer()
    assert (reply.status_line, reply.fields["connection"]) == ("HTTP/1.0 200 OK", "keep-alive")
    reply = client.send(b"GET /visits/%b HTTP/1.0\r\n%b\r\n" % (page, HOST)).answer()
    assert reply.fields["connection"] == "close"
    assert client.is_closed()


@pytest.mark.parametrize("page", ["closing", "wait/closing"])
def test_connection_close_is_honoured_and_what_follows_it_ignored(client: Client, page: str) -> None:
    client.ask("POST", f"/visits/{page}", "Connection: close").ask("POST", f"/visits/{page}")
    reply = client.answer()
    assert reply.fields["connection"] == "close"
    assert reply.body == b'{"visits": 1, "served_via": "stub"}'
    assert client.is_closed()


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 3\r\nContent-Length: 4\r\n",
        b"Content-Length: 3, 3\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Host: other\r\n",
    ],
)
def test_a_request_that_could_be_smuggled_is_refused_and_the_connection_closed(client: Client, fields: bytes) -> None:
    smuggled = b"0\r\n\r\nPOST /visits/smuggled HTTP/1.1\r\n%b\r\n" % HOST
    client.send(b"POST /visits/front HTTP/1.1\r\n%b%b\r\n" % (HOST, fields) + smuggled)
    assert client.answer().status == 400
    assert client.is_closed()


def test_nothing_smuggled_was_counted(client: Client) -> None:
    for page in ("smuggled", "front"):
        assert visits(client.ask("GET", f"/visits/{page}")) == 0


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /visits/" + b"x" * 9000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
        (b"GET /visits/x HTTP/1.1\r\n" + HOST + b"X: " + b"y" * 9000 + b"\r\n\r\n", 431),
        (b"GET /visits/x HTTP/1.1\r\n" + HOST + b"X: y\r\n" * 101 + b"\r\n", 431),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /visits/" + b"x" * 20_000, 414),
        (b"GET /visits/x HTTP/1.1\r\n" + HOST + b"X: y\n", 400),
    ],
)
def test_gunicorns_limits_hold(client: Client, request_bytes: bytes, status: int) -> None:
    assert client.send(request_bytes).answer().status == status
    assert client.is_closed()


def test_a_client_that_ends_its_side_still_gets_its_answers(client: Client) -> None:
    client.ask("POST", "/visits/half").ask("POST", "/visits/half").sock.shutdown(socket.SHUT_WR)
    assert [visits(client), visits(client)] == [1, 2]
    assert client.is_closed()


def test_clients_that_stall_hold_no_thread(server: StubServer) -> None:
    beginnings = [
        b"POST /ech",
        b"POST /echo HTTP/1.1\r\n%bContent-Length: 9\r\n\r\nhal" % HOST,
        b"POST /echo HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n5\r\nhal" % HOST,
        b"POST /echo HTTP/1.1\r\n%bContent-Length: 60000\r\n\r\n%b" % (HOST, b"x" * 50000),
        b"POST /echo HTTP/1.1\r\n%bContent-Length: 4\r\nExpect: 100-continue\r\n\r\n" % HOST,
    ]
    stalled = [server.client().send(beginning) for beginning in beginnings * 4]
    other = server.client()
    assert other.ask("POST", "/echo", body=b"at once").answer().body == b"at once"
    rests = [b"o HTTP/1.1\r\n%b\r\n" % HOST, b"f-body", b"fb\r\n0\r\n\r\n", b"x" * 10000, b"body"]
    for number, (client, rest) in enumerate(zip(stalled, rests * 4, strict=True)):
        if number % 5 == 4:
            assert client.line() == b"HTTP/1.1 100 Continue"
        assert client.send(rest).answer().status == 200
        client.close()


def test_a_client_that_does_not_read_holds_up_nobody_and_gets_everything(server: StubServer) -> None:
    deaf, number = server.client(), 60_000  # the answers are more than the sockets hold
    sender = threading.Thread(target=deaf.send, args=(b"GET /visits/deaf HTTP/1.1\r\n%b\r\n" % HOST * number,))
    sender.start()
    other = server.client()
    for _ in range(100):
        assert visits(other.ask("GET", "/visits/deaf")) == 0
    expected = other.ask("GET", "/visits/deaf").answer()
    assert all(deaf.answer() == expected for _ in range(number))
    sender.join()


def test_a_closing_connection_ends_cleanly_though_more_was_sent_than_read(client: Client) -> None:
    client.ask("POST", "/visits/ending", "Connection: close", body=b"").send(b"x" * 60_000)
    assert client.answer().fields["connection"] == "close"
    assert client.sock.recv(1) == b""  # and no reset, which could have cost the client its answer


def test_requests_of_one_turn_are_counted_with_one_call(server: StubServer) -> None:
    (pid,) = server.serving_pids()
    clients = [server.client() for _ in range(8)]
    for client in clients:
        assert visits(client.ask("GET", "/visits/turn")) == 0
    other = server.client()
    before = int(other.ask("GET", "/calls").answer().body)
    with processes.stopped(pid):
        for client in clients:
            client.ask("POST", "/visits/turn")
    assert sorted(visits(client) for client in clients) == list(range(1, 9))
    assert int(other.ask("GET", "/calls").answer().body) == before + 1


def test_an_error_while_counting_closes_the_connection_and_nothing_else(server: StubServer, client: Client) -> None:
    other = server.client()
    assert visits(other.ask("GET", "/visits/other")) == 0
    assert client.ask("POST", "/visits/break").is_closed()
    assert visits(other.ask("GET", "/visits/other")) == 0
    wait_until(lambda: "asked to break" in server.log, "the error is in the log")


@pytest.mark.parametrize("page", ["refuse", "uncertain"])
def test_a_visit_that_is_not_surely_counted_is_refused_as_flask_does_and_never_tried_again(
    client: Client, page: str
) -> None:
    def counted() -> int:
        return visits(client.ask("GET", f"/visits/{page}"))

    before = counted()
    by_the_loop = client.ask("POST", f"/visits/{page}").answer()
    assert by_the_loop.status == 503
    assert counted() == before + (page == "uncertain")
    chunked = b"POST /visits/%b HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" % (page.encode(), HOST)
    by_flask = client.send(chunked).answer()
    ignored = ("date", "transfer-encoding")
    for answer in (by_the_loop, by_flask):
        for name in ignored:
            answer.fields.pop(name, None)
    assert by_the_loop == by_flask
    assert counted() == before + 2 * (page == "uncertain")


def test_a_visit_that_waited_is_counted_once(client: Client, server: StubServer) -> None:
    other = server.client()
    assert visits(client.ask("POST", "/visits/wait/owner/page")) == 1
    assert visits(other.ask("GET", "/visits/wait/owner/page")) == 1


def test_a_connection_without_a_request_is_closed_in_time_and_a_kept_one_too(tmp_path: Path) -> None:
    with StubServer(tmp_path, "keepalive = 1\n") as server:
        client = server.client()
        assert visits(client.ask("GET", "/visits/any")) == 0
        assert client.is_closed()
        client = server.client()
        assert visits(client.ask("GET", "/visits/wait/any")) == 0
        assert client.is_closed()


def test_without_keepalive_every_answer_closes(tmp_path: Path) -> None:
    with StubServer(tmp_path, "keepalive = 0\n") as server:
        for page in ("a", "wait/a"):
            client = server.client()
            assert client.ask("GET", f"/visits/{page}").answer().fields["connection"] == "close"
            assert client.is_closed()


IMPATIENT = """
from visit_counter.server.worker import VisitWorker
class worker_class(VisitWorker):
    request_seconds = 0.2
"""


@pytest.mark.parametrize(
    "beginning",
    [
        b"POST /vis",
        b"POST /visits/a HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhal",
        b"POST /visits/a HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n" + b"x" * 50000,
        b"POST /visits/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhal",
    ],
)
def test_half_a_request_is_answered_408_when_its_time_is_up(tmp_path: Path, beginning: bytes) -> None:
    with StubServer(tmp_path, IMPATIENT, worker="") as server:
        client = server.client().send(beginning)
        assert client.answer().status == 408
        assert client.is_closed()


def test_what_follows_a_body_that_was_not_waited_for_is_not_taken_for_a_request(server: StubServer) -> None:
    client = server.client().send(b"POST /nothing HTTP/1.1\r\n%bContent-Length: 70000\r\n\r\n" % HOST)
    assert client.answer().status == 404
    with suppress(OSError):
        client.send(b"POST /visits/hidden HTTP/1.1\r\n%b\r\n" % HOST)
    assert client.is_closed()
    assert visits(server.client().ask("GET", "/visits/hidden")) == 0


def test_a_request_that_drips_has_one_deadline_from_its_first_byte(tmp_path: Path) -> None:
    with StubServer(tmp_path, IMPATIENT, worker="") as server:
        client = server.client().send(b"POST /visits/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.sock.settimeout(0.02)
        received = b""
        while b"408" not in received:
            client.send(b"1\r\nx\r\n")
            with suppress(TimeoutError):
                received += client.sock.recv(4096)
        assert received.startswith(b"HTTP/1.1 408 ")


def test_clients_that_take_no_answer_of_flasks_hold_no_thread(server: StubServer) -> None:
    deaf = []
    for _ in range(4):
        client = Client(socket.socket())
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.sock.connect(("127.0.0.1", server.port))
        client.sock.setblocking(False)
        with suppress(BlockingIOError):
            while True:  # until neither side takes any more
                client.sock.send(b"POST /echo HTTP/1.1\r\n%bContent-Length: 8000\r\n\r\n%b" % (HOST, b"x" * 8000))
        deaf.append(client)
    assert server.client().ask("POST", "/echo", body=b"at once").answer().body == b"at once"
    for client in deaf:
        client.close()


def test_a_client_that_does_not_take_its_answer_loses_its_connection_not_the_thread(tmp_path: Path) -> None:
    with StubServer(tmp_path, IMPATIENT + "threads = 1\n", worker="") as server:
        deaf = server.client().ask("GET", "/long")
        assert server.client().ask("POST", "/echo", body=b"next").answer().body == b"next"
        with pytest.raises(ConnectionError):
            deaf.answer()


def test_a_beacon_behind_a_unix_socket_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "counter.sock"
    with StubServer(
        tmp_path, f"bind = ['unix:{path}', '127.0.0.1:0']\n", worker="visit_counter.server.worker.VisitWorker"
    ) as server:
        wait_until(lambda: "Booting worker" in server.log, "a worker boots")
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        client = Client(sock)
        assert visits(client.ask("POST", "/visits/unix")) == 1
        assert visits(client.ask("POST", "/visits/wait/unix")) == 1
        client.close()
