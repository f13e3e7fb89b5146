"""The contract of `visit_counter.shards.contract`, over every store."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import pairwise
from threading import Barrier

import pytest
from redis import Redis

from tests.support.cluster import Cluster
from tests.support.least_acl import user_options
from tests.support.redis_servers import Server
from tests.support.sentinels import Sentinels
from visit_counter.config.settings import Shard
from visit_counter.model.visits import Tally
from visit_counter.shards.cluster.store import ClusterStore
from visit_counter.shards.contract import NO_WATERMARK, Applied, Batch, Look, Store, Stored, segment_of
from visit_counter.shards.factory import make_store
from visit_counter.shards.memory import MemoryStore
from visit_counter.shards.redis.store import RedisStore
from visit_counter.shards.ring import PARTITIONS, partition_of
from visit_counter.shards.router import ShardedStore
from visit_counter.shards.stamps import others_change

PAGES = ["home", "blog/2026/03/why", "/slash/", "a b", "über-uns", "記事/🦊", "x" * 255, "writer", "0", "visits:{17}"]
THREADS = 8


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """Two servers, empty at first."""
    with ExitStack() as stack:
        folders = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
        yield [stack.enter_context(closing(Server(folder, *user_options()))) for folder in folders]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of three primaries and three replicas."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture(scope="module")
def sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sentinels]:
    """A primary, its replica and three sentinels."""
    with Sentinels(tmp_path_factory.mktemp("sentinels")) as made:
        yield made


def patient(shard: Shard) -> RedisStore | ClusterStore:
    """Return the shard's store, patient with a machine that has other things to do."""
    return make_store(shard, connect_seconds=10, read_seconds=10, add_seconds=10)


@pytest.fixture(params=["memory", "redis", "sharded", "cluster", "sentinel"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """Each store in turn, empty; the servers know no other user than the one the manual describes."""
    made: Store = MemoryStore()
    if request.param in ("redis", "sharded"):
        servers: list[Server] = request.getfixturevalue("servers")
        empty(servers)
        shards = [patient(server.shard) for server in servers]
        made = shards[0] if request.param == "redis" else ShardedStore(shards)
    elif request.param == "cluster":
        cluster: Cluster = request.getfixturevalue("cluster")
        empty(cluster.primaries())
        made = patient(cluster.shard)
    elif request.param == "sentinel":
        sentinels: Sentinels = request.getfixturevalue("sentinels")
        empty(sentinels.servers[:1])
        made = patient(sentinels.shard)
    yield made
    made.close()


def empty(servers: list[Server]) -> None:
    """Delete everything."""
    for server in servers:
        server.call("FLUSHALL")


def batches_of(visits: dict[str, int], expected: str, watermark: str) -> list[Batch]:
    """Return the batches that bring these visits."""
    by_partition: dict[int, dict[str, int]] = {}
    for page, count in visits.items():
        by_partition.setdefault(partition_of(page), {})[page] = count
    return [Batch(partition, expected, watermark, Tally(pages)) for partition, pages in by_partition.items()]


def counts(store: Store, pages: list[str], writer: str = "writer") -> list[int]:
    """Return the counts alone."""
    return [stored.visits for stored in store.read(writer, pages)]


def in_threads(call: Callable[[int], object]) -> list[object]:
    """Call with 0 to THREADS - 1, in threads that start together; return the results."""
    barrier = Barrier(THREADS)

    def run(index: int) -> object:
        barrier.wait()
        return call(index)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(run, range(THREADS)))


def test_a_page_never_visited_is_zero_and_has_no_watermark(store: Store) -> None:
    assert store.read("writer", PAGES) == [Stored(0, NO_WATERMARK)] * len(PAGES)


def test_reading_no_page_reads_nothing(store: Store) -> None:
    assert store.read("writer", []) == []
    assert store.watermarks("writer", []) == []
    assert store.apply("writer", []) == []


def test_add_returns_the_new_count_and_read_sees_it(store: Store) -> None:
    for index, page in enumerate(PAGES):
        assert store.add(page, 1) == 1
        assert store.add(page, index) == index + 1
    assert counts(store, PAGES) == list(range(1, len(PAGES) + 1))


def test_read_answers_in_the_order_asked_and_may_be_asked_twice_for_a_page(store: Store) -> None:
    pages = [f"page/{number}" for number in range(2500)]
    store.apply("writer", batches_of({page: index + 1 for index, page in enumerate(pages)}, "", "1:a"))
    asked = [*reversed(pages), pages[0]]
    assert counts(store, asked) == [*range(2500, 0, -1), 1]


def test_a_batch_counts_its_visits_and_sets_its_watermark(store: Store) -> None:
    store.add("home", 5)
    batches = batches_of(dict.fromkeys(PAGES, 3), "", "4:nonce")
    assert store.apply("writer", iter(batches)) == [Applied(batch.partition, "4:nonce") for batch in batches]
    assert store.read("writer", PAGES) == [Stored(8 if page == "home" else 3, "4:nonce") for page in PAGES]


def test_a_batch_sent_again_changes_nothing_and_says_that_it_is_included(store: Store) -> None:
    batches = batches_of(dict.fromkeys(PAGES, 3), "", "1:a")
    first = store.apply("writer", batches)
    assert [store.apply("writer", batches) for _ in range(3)] == [first] * 3
    assert counts(store, PAGES) == [3] * len(PAGES)


@pytest.mark.parametrize("expected", ["", "1:b", "2:a", "3:a"])
def test_a_batch_that_expects_another_watermark_changes_nothing_and_returns_the_one_there_is(
    store: Store, expected: str
) -> None:
    store.apply("writer", batches_of({"home": 3}, "", "1:a"))
    assert store.apply("writer", batches_of({"home": 5}, expected, "4:a")) == [Applied(partition_of("home"), "1:a")]
    assert store.read("writer", ["home"]) == [Stored(3, "1:a")]


def test_batches_of_one_partition_in_one_call_are_applied_in_order(store: Store) -> None:
    tokens = ["", *(f"{number}:a" for number in range(1, 101))]
    batches = [Batch(partition_of("home"), old, new, Tally({"home": 1})) for old, new in pairwise(tokens)]
    assert [applied.watermark for applied in store.apply("writer", batches)] == tokens[1:]
    assert store.read("writer", ["home"]) == [Stored(100, "100:a")]


def test_a_batch_without_visits_moves_the_watermark_alone(store: Store) -> None:
    assert store.apply("writer", [Batch(7, "", "9:z", Tally())]) == [Applied(7, "9:z")]
    assert store.watermarks("writer", [7, 8]) == ["9:z", ""]


def test_writers_have_watermarks_of_their_own_and_share_the_counts(store: Store) -> None:
    for writer in ("writer", "other", "über"):
        store.apply(writer, batches_of(dict.fromkeys(PAGES, 2), "", f"1:{writer}"))
    for writer in ("writer", "other", "über"):
        assert store.read(writer, PAGES) == [Stored(6, f"1:{writer}")] * len(PAGES)


def test_a_page_with_the_name_of_the_writer_is_a_page(store: Store) -> None:
    store.apply("home", batches_of({"home": 3}, "", "1:a"))
    assert store.add("home", 1) == 4
    assert store.read("home", ["home"]) == [Stored(4, "1:a")]


@pytest.mark.parametrize("pages", [998, 999, 1000, 1998, 1999, 3500])
def test_a_batch_of_any_size_is_applied_whole(store: Store, pages: int) -> None:
    visits = {f"page/{number}": number + 1 for number in range(pages)}
    for old, new in (("", "1:a"), ("1:a", "2:a")):
        assert store.apply("writer", [Batch(3, old, new, Tally(visits))]) == [Applied(3, new)]
    # All in one partition on purpose, so they are looked up there and not by their own partition.
    if isinstance(store, RedisStore):
        assert sum(int(value) for value in hash_of(store, 3).values() if value.isdigit()) == pages * (pages + 1)
    assert store.watermarks("writer", [3]) == ["2:a"]


def hash_of(store: RedisStore, partition: int) -> dict[str, str]:
    """Return the partition as the server holds it."""
    with Redis(port=int(store.server.address.rpartition(":")[2]), decode_responses=True) as client:
        found = client.hgetall(f"visits:{{{partition}}}")
    assert isinstance(found, dict)
    return found


def test_every_partition_can_be_applied_in_one_call(store: Store) -> None:
    batches = [Batch(partition, "", f"{partition + 1}:a", Tally()) for partition in range(PARTITIONS)]
    assert store.apply("writer", batches) == [Applied(batch.partition, batch.watermark) for batch in batches]
    assert store.watermarks("writer", range(PARTITIONS)) == [batch.watermark for batch in batches]


def test_large_batches_are_applied_in_one_call(store: Store) -> None:
    visits = {f"{number}/{'long' * 60}": 1 for number in range(12_000)}
    results = store.apply("writer", batches_of(visits, "", "1:a"))
    assert {applied.watermark for applied in results} == {"1:a"}
    assert sum(counts(store, list(visits))) == 12_000


def test_threads_that_add_to_one_page_each_get_a_count_nobody_else_got(store: Store) -> None:
    got = in_threads(lambda _: [store.add("home", 1) for _ in range(100)])
    flat = [count for counts_of_one in got for count in counts_of_one]  # type: ignore[attr-defined]  # lists of counts
    assert sorted(flat) == list(range(1, THREADS * 100 + 1))
    assert counts(store, ["home"]) == [THREADS * 100]


def test_threads_that_apply_the_same_batches_count_them_once(store: Store) -> None:
    visits = {f"page/{number}": 2 for number in range(300)}
    for round_number in range(5):
        old, new = (f"{round_number}:a" if round_number else "", f"{round_number + 1}:a")
        batches = batches_of(visits, old, new)
        results = in_threads(lambda _, batches=batches: store.apply("writer", batches))  # type: ignore[misc]  # mypy cannot infer it
        assert all(result == [Applied(batch.partition, new) for batch in batches] for result in results)
    assert Counter(counts(store, list(visits))) == {10: 300}


def test_of_threads_that_race_with_different_batches_one_wins_and_all_are_told_who(store: Store) -> None:
    present = NO_WATERMARK
    for round_number in range(1, 21):
        results = in_threads(
            lambda me, present=present, number=round_number: store.apply(  # type: ignore[misc]  # mypy cannot infer it
                "writer", [Batch(partition_of("home"), present, f"{number}:{me}", Tally({"home": 1}))]
            )
        )
        assert len({str(result) for result in results}) == 1
        [stored] = store.read("writer", ["home"])
        present = stored.watermark
        assert stored.visits == round_number
        assert results[0] == [Applied(partition_of("home"), present)]


def test_a_reader_never_sees_a_count_without_its_watermark(store: Store) -> None:
    rounds = 150

    def work(index: int) -> object:
        if index == 0:
            tokens = ["", *(f"{number}:a" for number in range(1, rounds + 1))]
            return [store.apply("writer", batches_of({"home": 7}, old, new)) for old, new in pairwise(tokens)]
        return [store.read("writer", ["home", "home"]) for _ in range(rounds)]

    seen = in_threads(work)
    pairs = [stored for reads in seen[1:] for read in reads for stored in read]  # type: ignore[attr-defined]  # lists of reads
    assert all(stored.visits == 7 * segment_of(stored.watermark) for stored in pairs)
    assert store.read("writer", ["home"]) == [Stored(7 * rounds, f"{rounds}:a")]


def test_what_was_applied_is_on_disk_where_the_store_has_one(store: Store) -> None:
    store.apply("writer", batches_of(dict.fromkeys(PAGES, 1), "", "1:a"))
    assert store.persist(10) is (None if isinstance(store, MemoryStore) else True)


def test_it_answers_a_ping(store: Store) -> None:
    assert store.ping() is True


def test_a_closed_store_opens_again_when_used(store: Store) -> None:
    store.add("home", 1)
    store.close()
    store.close()
    assert store.add("home", 1) == 2


def test_losses_are_raised_in_their_partitions_and_read_with_every_count(store: Store) -> None:
    at = partition_of("home")
    assert store.raise_losses({}) == set()
    assert store.raise_losses({at: 2}) == {at}
    assert store.raise_losses({at: 1}) == {at}
    store.apply("writer", [Batch(at, NO_WATERMARK, "1:a", Tally({"home": 4}))])
    assert store.read("writer", ["home", "other"]) == [Stored(4, "1:a", 3), Stored(0, NO_WATERMARK, 0)]


def test_a_writer_that_looks_at_a_partition_sees_a_change_only_where_another_one_has_applied(store: Store) -> None:
    at = partition_of("home")

    def apply(writer: str, expected: str, watermark: str) -> None:
        [applied] = store.apply(writer, [Batch(at, expected, watermark, Tally({"home": 1}))])
        assert applied.watermark == watermark

    def look(writer: str) -> tuple[str, str, int]:
        [found, untouched] = store.look(writer, [at, at + 1])
        assert found is not None
        assert untouched == Look(NO_WATERMARK, 0, "")
        [stored] = store.read(writer, ["home"])
        assert found == Look(stored.watermark, stored.losses, stored.stamp)
        return found.watermark, others_change(found.stamp, writer), found.losses

    assert look("me") == ("", "", 0)
    apply("me", "", "1:a")
    assert look("me") == ("1:a", "", 0)
    apply("you", "", "7:b")
    assert look("me") == ("1:a", "you/7:b", 0)
    apply("me", "1:a", "2:a")
    apply("me", "2:a", "3:a")
    assert look("me") == ("3:a", "you/7:b", 0)
    assert look("you") == ("7:b", "me/3:a", 0)
    apply("me2", "", "3:a")
    assert look("me") == ("3:a", "me2/3:a", 0)
    store.raise_losses({at: 2})
    assert look("you")[2] == 2


def test_looking_at_no_partition_says_nothing(store: Store) -> None:
    assert store.look("writer", []) == []
