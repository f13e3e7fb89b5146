"""The HTTP contract on the wire: every profile served by gunicorn, over real shards."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.http_client import Client, Reply
from tests.support.servers import GunicornServer, ValkeyServer, running_valkeys
from visit_counter.config.profiles import PROFILES

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.quick

CLIENT_METHODS = {"GET", "HEAD", "OPTIONS", "POST"}
LIMIT = 64 * 1024


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ValkeyServer]]:
    """Two running shards."""
    with running_valkeys(*(tmp_path_factory.mktemp("shard") for _ in range(2))) as servers:
        yield servers


@pytest.fixture(scope="module", params=PROFILES)
def service(
    request: pytest.FixtureRequest, shards: list[ValkeyServer], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """The port of a running service of each profile in turn, over empty shards."""
    for shard in shards:
        with shard.client() as client:
            client.flushall()
    urls = ",".join(shard.url for shard in shards)
    environ = {"VISITS_PROFILE": request.param, "VISITS_SHARDS": urls}
    server = GunicornServer(
        tmp_path_factory.mktemp("service"), app="tests.support.patient_app:patient_app()", **environ
    )
    try:
        yield server.start().port
    finally:
        server.stop()
    assert "Traceback" not in server.log


@pytest.fixture
def client(service: int) -> Iterator[Client]:
    """One connection to the service."""
    with socket.create_connection(("127.0.0.1", service)) as connection:
        yield Client(connection)


def ask(client: Client, method: str, target: bytes, *fields: bytes, body: bytes = b"") -> Reply:
    """Send a request whose target is these very bytes; return the answer."""
    head = [b"%b %b HTTP/1.1" % (method.encode(), target), b"Host: counter.example", *fields]
    client.send(b"\r\n".join(head) + b"\r\n\r\n" + body)
    return client.answer(has_body=method != "HEAD")


def visits(client: Client, method: str, page: bytes) -> int:
    """Return the count that an answer of 200 gives, having checked all of that answer."""
    reply = ask(client, method, b"/visits/" + page)
    assert reply.status == 200, reply
    assert reply.fields["content-type"] == "application/json"
    assert reply.fields["cache-control"] == "no-store"
    answer: dict[str, Any] = json.loads(reply.body)
    assert list(answer) == ["visits", "served_via"]
    assert type(answer["visits"]) is int
    assert reply.body == b'{"visits": %d, "served_via": "%b"}' % (answer["visits"], answer["served_via"].encode())
    return int(answer["visits"])


def is_problem(reply: Reply, status: int, detail: str = "") -> bool:
    """Tell whether an answer is the problem document that it should be; for use in an assert."""
    assert reply.status == status, reply
    assert reply.fields["content-type"] == "application/problem+json"
    problem = json.loads(reply.body)
    assert list(problem) == ["type", "title", "status", "detail"]
    assert (problem["type"], problem["status"]) == ("about:blank", status)
    assert problem["title"]
    assert detail in problem["detail"]
    assert b"<" not in reply.body
    return bool(problem["detail"])


def test_every_post_counts_one_visit_and_every_get_none(client: Client) -> None:
    assert visits(client, "GET", b"new") == 0
    assert [visits(client, "POST", b"new") for _ in range(3)] == [1, 2, 3]
    assert [visits(client, "GET", b"new") for _ in range(2)] == [3, 3]


@pytest.mark.parametrize(
    ("one", "same"),
    [
        (b"blog/2026/why", b"blog%2F2026%2fwhy"),
        (b"two%20words", b"two%20words?utm=1&x"),
        (b"%E8%A8%98%E4%BA%8B", b"%e8%a8%98%e4%ba%8b"),
        (b"a+b", b"a%2Bb"),
        (b"..", b"%2e%2E"),
        (b".", b"%2e"),
        (b"%25zz", b"%zz"),
        (b"what%3Fnow%23here", b"what%3fnow%23here"),
        (b"%22quotes%22%20and%20%5Cslashes", b"%22quotes%22%20and%20\\slashes"),
        (b"~user", b"%7Euser"),
        (b"x" * 255, b"%78" * 255),
        (b"%E8%A8%98" * 85, b"%e8%a8%98" * 85),
        (b"http://example.com/", b"http:%2F%2Fexample.com%2F"),
    ],
    ids=lambda target: repr(target[:24]),
)
def test_a_page_is_the_percent_decoded_path(client: Client, one: bytes, same: bytes) -> None:
    before = visits(client, "GET", same)
    assert visits(client, "POST", one) == before + 1
    assert visits(client, "POST", same) == before + 2
    assert visits(client, "GET", one) == before + 2


def test_pages_that_look_alike_are_different_pages(client: Client) -> None:
    """No slash is merged, no dot segment removed, no plus decoded, no letter folded."""
    alike = [
        *(b"alike", b"/alike", b"alike/", b"alike//", b"//alike", b"./alike", b"../alike", b"x/../alike", b"Alike"),
        *(b"a/like", b"a//like", b"a+like", b"a%20like", b"a%252Flike", b"%20alike", b"alike.", b"alike%3Fx"),
        *(b"al%C3%AFke", b"ali%CC%88ke"),
    ]
    for times, page in enumerate(alike, start=1):
        assert [visits(client, "POST", page) for _ in range(times)] == list(range(1, times + 1))
    assert [visits(client, "GET", page) for page in alike] == list(range(1, len(alike) + 1))


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("page", "detail"),
    [
        (b"", "is empty"),
        (b"?a=1", "is empty"),
        (b"x" * 256, "is 256 bytes; it must be 1 to 255"),
        (b"%C3%A9" * 128, "is 256 bytes"),
        (b"/" * 256, "is 256 bytes"),
        (b"%00", "U+0000"),
        (b"a%00b", "U+0000"),
        (b"a%0Ab", "U+000A"),
        (b"%0D%0A", "U+000D"),
        (b"tab%09", "U+0009"),
        (b"%1B[31m", "U+001B"),
        (b"%7f", "U+007F"),
        (b"%C2%85", "U+0085"),
        (b"%FF", "not valid UTF-8"),
        (b"caf%E9", "not valid UTF-8"),
        (b"%C3", "not valid UTF-8"),
        (b"%C0%AF", "not valid UTF-8"),
        (b"%ED%A0%80", "not valid UTF-8"),
    ],
    ids=lambda value: repr(value[:12]) if isinstance(value, bytes) else "",
)
def test_what_is_no_page_is_400_with_the_reason(client: Client, method: str, page: bytes, detail: str) -> None:
    assert is_problem(ask(client, method, b"/visits/" + page), 400, detail)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"])
def test_another_method_is_405_and_is_told_what_is_allowed(client: Client, method: str) -> None:
    reply = ask(client, method, b"/visits/methods")
    assert is_problem(reply, 405)
    assert set(reply.fields["allow"].split(", ")) == CLIENT_METHODS
    reply = ask(client, method, b"/health")
    assert is_problem(reply, 405)
    assert set(reply.fields["allow"].split(", ")) == CLIENT_METHODS - {"POST"}
    assert visits(client, "GET", b"methods") == 0


@pytest.mark.parametrize("target", [b"/", b"/visit/a", b"/health/", b"/VISITS/a", b"/x/visits/a"])
def test_another_path_is_404_for_every_method(client: Client, target: bytes) -> None:
    for method in ("GET", "POST", "PUT"):
        assert is_problem(ask(client, method, target), 404)


def test_head_is_get_without_the_body(client: Client) -> None:
    visits(client, "POST", b"head")
    # The first GET may be the one that fills the cache, which another answer then names.
    visits(client, "GET", b"head")
    get, head = ask(client, "GET", b"/visits/head"), ask(client, "HEAD", b"/visits/head")
    assert head.status == 200
    assert head.fields["content-type"] == "application/json"
    assert head.fields["content-length"] == get.fields["content-length"]
    assert visits(client, "GET", b"head") == 1
    assert ask(client, "HEAD", b"/visits/").fields["content-type"] == "application/problem+json"


def test_options_says_what_is_allowed_and_is_no_html(client: Client) -> None:
    reply = ask(client, "OPTIONS", b"/visits/options")
    assert (reply.status, reply.body) == (200, b"")
    assert set(reply.fields["allow"].split(", ")) == CLIENT_METHODS
    assert "html" not in reply.fields["content-type"]
    assert visits(client, "GET", b"options") == 0


def test_a_body_says_nothing_and_may_be_64_kib(client: Client) -> None:
    """A beacon sends a body; the page alone is what counts."""
    body = b"visits=1000" + b" " * (LIMIT - 11)
    reply = ask(client, "POST", b"/visits/body", b"Content-Length: %d" % LIMIT, body=body)
    assert json.loads(reply.body)["visits"] == 1
    chunks = b"a\r\n0123456789\r\n0\r\n\r\n"
    reply = ask(client, "POST", b"/visits/body", b"Transfer-Encoding: chunked", body=chunks)
    assert json.loads(reply.body)["visits"] == 2


@pytest.mark.parametrize(
    ("field", "body"),
    [
        (b"Content-Length: %d" % (LIMIT + 1), b"x" * (LIMIT + 1)),
        (b"Content-Length: 1000000000000", b""),
        (b"Transfer-Encoding: chunked", (b"8000\r\n" + b"x" * 0x8000 + b"\r\n") * 3 + b"0\r\n\r\n"),
    ],
    ids=["a byte more", "a terabyte announced", "chunked"],
)
def test_a_larger_body_is_413_and_counts_nothing(client: Client, service: int, field: bytes, body: bytes) -> None:
    assert is_problem(ask(client, "POST", b"/visits/large", field, body=body), 413)
    with socket.create_connection(("127.0.0.1", service)) as other:
        assert visits(Client(other), "GET", b"large") == 0


def test_health_names_the_shards(client: Client, shards: list[ValkeyServer], request: pytest.FixtureRequest) -> None:
    reply = ask(client, "GET", b"/health")
    assert reply.status == 200
    assert reply.fields["content-type"] == "application/json"
    health = json.loads(reply.body)
    assert list(health)[:2] == ["api_status", "redis_status"]
    assert health["api_status"] == "healthy"
    profile = request.node.callspec.params["service"]
    used = {"basic": 0, "sharded": 2}.get(profile, 1)
    assert health["redis_status"] == {f"redis_{shard.port}": True for shard in shards[:used]}
    assert health["profile"] == profile
