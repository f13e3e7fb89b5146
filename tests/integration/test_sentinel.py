"""RedisStore behind real sentinels: a primary dies; nothing is lost or doubled, and the new one is found."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.support.fake_shards import FakeShard
from tests.support.least_acl import LEAST_USER, PASSWORD
from tests.support.ports import free_port
from tests.support.redis_servers import Server
from tests.support.sentinels import SERVICE, Sentinels
from tests.support.servers import wait_until
from tests.support.tls import Authority, TlsFront
from tests.support.under_load import load
from visit_counter.config.settings import Shard
from visit_counter.errors import StoreRefusedError, StoreUnavailableError
from visit_counter.model.visits import Tally
from visit_counter.shards.contract import Applied, Batch, Stored
from visit_counter.shards.redis.breaker import Breaker
from visit_counter.shards.redis.store import RedisStore
from visit_counter.shards.ring import PARTITIONS, partition_of

HOME = partition_of("home")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sentinels]:
    """One pair and its sentinels, which each test leaves whole."""
    with Sentinels(tmp_path_factory.mktemp("sentinels")) as made:
        yield made


@pytest.fixture
def sentinels(running: Sentinels) -> Sentinels:
    """Return the pair, emptied, and both up."""
    running.mend()
    return running


def patient(shard: Shard) -> RedisStore:
    """Return a store that is patient, and asks again at once."""
    return RedisStore(
        shard, connect_seconds=5, read_seconds=5, add_seconds=5, apply_seconds=10, breaker=Breaker(probe_seconds=0.0)
    )


@pytest.mark.parametrize("behind", [False, True])
def test_no_visit_is_lost_or_doubled_when_the_primary_is_killed_under_load(
    sentinels: Sentinels, tmp_path: Path, caplog: pytest.LogCaptureFixture, behind: bool
) -> None:
    caplog.set_level(logging.WARNING)
    # None is retained for its own sake: only what a replica lacks is.
    with load(tmp_path, [RedisStore(sentinels.shard)], retain_segments=0) as oracle:
        wait_until(lambda: oracle.answers > 500, "some load")
        sentinels.fail_over(behind=behind)
        before = oracle.answers
        wait_until(lambda: oracle.answers > before + 500, "some load after the failover")
    assert oracle.mistakes == []
    if behind:
        assert "made whole from the retained segments" in caplog.text


def test_the_promoted_server_is_found_and_vouches_for_what_it_received(sentinels: Sentinels) -> None:
    with closing(patient(sentinels.shard)) as store:
        store.apply("writer", [Batch(HOME, "", "1:a", Tally({"home": 1}))])
        assert store.persist(5) is True
        sentinels.fail_over()
        wait_until(store.ping, "the new primary to be found")
        assert store.read("writer", ["home"]) == [Stored(1, "1:a")]
        wait_until(lambda: store.persist(1) is True, "the promoted server to vouch for it")
        assert store.apply("writer", [Batch(HOME, "1:a", "2:a", Tally({"home": 1}))]) == [Applied(HOME, "2:a")]


def test_a_primary_that_has_become_a_replica_is_left_for_the_new_one(sentinels: Sentinels) -> None:
    with closing(patient(sentinels.shard)) as store:
        assert store.add("home", 1) == 1
        sentinels.demote()
        wait_until(lambda: is_added(store), "the new primary to be found")
        assert store.read("writer", ["home"]) == [Stored(2, "")]


def is_added(store: RedisStore) -> bool:
    """Try to count a visit where refusal is certain: a demoted server says READONLY, or closes the connection first."""
    try:
        store.add("home", 1)
    except StoreUnavailableError:
        return False
    return True


def test_a_wrong_password_is_refused_and_not_shown(sentinels: Sentinels) -> None:
    with closing(patient(Shard("watched", sentinels.shard.url.replace(PASSWORD, "wrong-canary")))) as store:
        with pytest.raises(StoreRefusedError, match=r"WRONGPASS|invalid username") as refused:
            store.read("writer", ["home"])
        (row,) = store.status("writer", range(PARTITIONS))
    assert "canary" not in f"{refused.value!r} {refused.value} {row}"


@pytest.mark.parametrize("service", [SERVICE, "unknown"])
def test_sentinels_that_are_down_or_do_not_know_the_service_are_unavailable(sentinels: Sentinels, service: str) -> None:
    port = sentinels.ports[0] if service == "unknown" else free_port()
    shard = Shard(
        "watched", f"redis+sentinel://{LEAST_USER}:canary-1@127.0.0.1:{port}/{service}?sentinel_password=canary-2"
    )
    if service == "unknown":
        shard = Shard("watched", shard.url.partition("?")[0])
    with closing(patient(shard)) as store:
        with pytest.raises(StoreUnavailableError) as down:
            store.read("writer", ["home"])
        assert store.ping() is False
        assert store.persist(0.1) is False
    assert str(down.value) == "watched: the sentinels do not answer, or know no primary that does"


def test_one_sentinel_that_answers_is_enough(sentinels: Sentinels) -> None:
    url = f"redis+sentinel://{LEAST_USER}:{PASSWORD}@127.0.0.1:{free_port()},127.0.0.1:{sentinels.ports[2]}/{SERVICE}"
    with closing(patient(Shard("watched", url))) as store:
        assert store.add("home", 1) == 1


# What a sentinel may say


def sentinel(port: int, epoch: int) -> bytes:
    """Return what a sentinel says of the service `main`: its primary is at this port, since this epoch."""
    said = {"name": "main", "ip": "127.0.0.1", "port": port, "flags": "master", "config-epoch": epoch}
    words = [str(word).encode() for pair in said.items() for word in pair]
    return b"*1\r\n*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


@pytest.mark.parametrize("stale_first", [True, False])
def test_of_several_sentinels_the_one_with_the_latest_word_counts(tmp_path: Path, stale_first: bool) -> None:
    with ExitStack() as stack:
        primary, demoted = (stack.enter_context(closing(Server(tmp_path / name))) for name in ("primary", "demoted"))
        demoted.call("REPLICAOF", "127.0.0.1", primary.port)
        words = [sentinel(primary.port, 12), sentinel(demoted.port, 9)]
        if stale_first:
            words.reverse()
        fakes = [
            stack.enter_context(closing(FakeShard(lambda _, word=word: word)))  # type: ignore[misc]  # mypy cannot infer it
            for word in [*words, b"+garbage\r\n"]
        ]
        hosts = ",".join(f"127.0.0.1:{fake.port}" for fake in fakes)
        store = RedisStore(Shard("main", f"redis+sentinel://{hosts}/main"), connect_seconds=5, read_seconds=5)
        with closing(store):
            assert store.apply("w", [Batch(HOME, "", "1:a", Tally({"home": 1}))]) == [Applied(HOME, "1:a")]
            assert store.read("w", ["home"]) == [Stored(1, "1:a")]
        assert primary.call("HGET", f"visits:{{{HOME}}}", "home") == "1"


def test_sentinels_and_their_servers_are_spoken_to_with_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    certificate = authority.certificate("server", "IP:127.0.0.1")
    with ExitStack() as stack:
        server = stack.enter_context(closing(Server(tmp_path / "server")))
        front = stack.enter_context(closing(TlsFront(server.port, *certificate)))
        fake = stack.enter_context(closing(FakeShard(lambda _: sentinel(front.port, 1))))
        watched = stack.enter_context(closing(TlsFront(fake.port, *certificate)))
        url = f"redis+sentinel://127.0.0.1:{watched.port}/main?ssl=true"
        trusted = Shard("main", f"{url}&ssl_ca_certs={authority.ca}")
        with closing(RedisStore(trusted, connect_seconds=5, read_seconds=5)) as store:
            assert store.add("home", 1) == 1
            assert store.read("w", ["home"]) == [Stored(1, "")]
        stranger = Authority(tmp_path / "other", "another authority")
        for wrong in (url, f"{url}&ssl_ca_certs={stranger.ca}", url.partition("?")[0]):
            with (
                closing(RedisStore(Shard("main", wrong), connect_seconds=5, read_seconds=1)) as store,
                pytest.raises(StoreUnavailableError, match="sentinels do not answer"),
            ):
                store.read("w", ["home"])
