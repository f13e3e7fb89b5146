"""What an error of redis-py means here, and commands packed by hand."""

import pytest
from redis import exceptions
from redis.connection import Connection

from visit_counter.errors import StoreRefusedError, StoreUnavailableError
from visit_counter.shards.redis.exchange import pack
from visit_counter.shards.redis.wire import explain, is_down


def test_packed_bytes_are_those_of_redis_py() -> None:
    parts = (b"HINCRBY", b"visits:{17}", "über\u2028/🦊".encode(), b"1", b"")
    theirs = Connection().pack_command(*parts)  # type: ignore[no-untyped-call]  # redis-py's gap
    assert pack(*parts) == b"".join(theirs)


@pytest.mark.parametrize(
    "error",
    [
        exceptions.ConnectionError("Connection refused"),
        exceptions.TimeoutError("Timeout reading from socket"),
        exceptions.BusyLoadingError("Redis is loading the dataset in memory", status_code="LOADING"),
        exceptions.ClusterDownError("The cluster is down", status_code="CLUSTERDOWN"),
        exceptions.MasterDownError("Link with MASTER is down", status_code="MASTERDOWN"),
        exceptions.TryAgainError("Multiple keys request during rehashing of slot", status_code="TRYAGAIN"),
        exceptions.ResponseError("BUSY Valkey is busy running a script."),
        exceptions.MaxConnectionsError("Too many connections"),
        exceptions.InvalidResponse("Protocol Error: b'HTTP/1.1 400 Bad Request'"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_no_answer_is_unavailable(error: exceptions.RedisError) -> None:
    assert type(explain("redis_7070", error)) is StoreUnavailableError


@pytest.mark.parametrize(
    "error",
    [
        exceptions.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
        exceptions.ResponseError("MISCONF Errors writing to the AOF file: No space left on device"),
        exceptions.AuthenticationError("invalid username-password pair or user is disabled.", status_code="WRONGPASS"),
        exceptions.AuthorizationError("not allowed"),
        exceptions.NoPermissionError("User default has no permissions", status_code="NOPERM"),
        exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'.", status_code="OOM"),
        exceptions.ReadOnlyError("You can't write against a read only replica.", status_code="READONLY"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_answer_that_says_no_is_a_refusal(error: exceptions.RedisError) -> None:
    assert type(explain("redis_7070", error)) is StoreRefusedError


def test_the_text_names_the_shard_and_the_code() -> None:
    error = exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'.", status_code="OOM")
    assert str(explain("redis_7070", error)) == "redis_7070: OOM command not allowed when used memory > 'maxmemory'."


@pytest.mark.parametrize(
    ("error", "down"),
    [
        (exceptions.ClusterDownError("Hash slot not served", status_code="CLUSTERDOWN"), False),
        (exceptions.ClusterDownError("The cluster is down", status_code="CLUSTERDOWN"), True),
        (exceptions.TryAgainError("Multiple keys request during rehashing of slot", status_code="TRYAGAIN"), False),
        (exceptions.MovedError("5 127.0.0.1:7000"), False),
    ],
    ids=str,
)
def test_a_slot_that_nobody_has_is_not_an_outage_of_the_server_that_says_so(
    error: exceptions.RedisError, down: bool
) -> None:
    assert is_down(error) is down
    assert type(explain("redis_7070", error)) is StoreUnavailableError


def test_a_text_without_end_is_cut_off() -> None:
    assert len(str(explain("redis_7070", exceptions.ResponseError("x" * 5000)))) < 300
