"""A shard of a running service hangs or dies under load, and returns: nobody is refused, nothing is lost or doubled."""

from __future__ import annotations

import signal
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.load import Load
from tests.support.own_shards import Service
from tests.support.servers import DEADLINE_SECONDS
from visit_counter.journal.checkpoint import Checkpoint
from visit_counter.journal.segments import Journal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """Two workers that flush five times a second; 200 pages."""
    environ: dict[str, Any] = {"VISITS_FLUSH_SECONDS": "0.2", "VISITS_RETAIN_SEGMENTS": "2"}
    with closing(Service(tmp_path, 200, workers=2, **environ)) as made:
        yield made


@pytest.fixture
def load(service: Service) -> Iterator[Load]:
    """A light load of pages that both workers know."""
    with closing(Load(service.gunicorn.port, service.pages, rate=150)) as made:
        made.make_known(lambda: service.every_worker_serves(2))
        yield made


def keep_up(load: Load, condition: Callable[[], bool], what: str) -> None:
    """Keep up the load until the condition is true."""
    assert load.run(DEADLINE_SECONDS, condition, 0.1), what


def journal(service: Service) -> Journal:
    """Return the service's journal, to look at."""
    return Journal(service.gunicorn.dir / "data" / "journal")


def last_error(service: Service) -> str | None:
    """Return what was wrong with the last flush, "" for nothing, None where there was none yet."""
    last = Checkpoint.load(journal(service).state_path).last_flush
    return last.error if last else None


def waits_merged(service: Service) -> bool:
    """Tell whether segments that wait for the shard have been merged."""
    return any(segment.first != segment.last for segment in journal(service).segments())


@pytest.mark.parametrize("hangs", [True, False], ids=["hangs", "dies"])
def test_visits_of_a_shard_that_is_down_wait_and_then_drain_by_themselves(
    service: Service, load: Load, hangs: bool
) -> None:
    shard = service.shards[0]
    keep_up(load, lambda: last_error(service) == "", "a flush")
    if hangs:
        shard.freeze()
    else:
        shard.stop(signal.SIGKILL)
    keep_up(load, lambda: service.gunicorn.health()["api_status"] == "degraded", "health says degraded")
    keep_up(load, lambda: waits_merged(service), "what waits is merged")
    if hangs:
        shard.thaw()
    else:
        shard.start()
    keep_up(load, lambda: service.gunicorn.health()["api_status"] == "healthy", "health says healthy")
    keep_up(load, lambda: last_error(service) == "", "all that waited is stored")
    assert {sample.status for sample in load.samples} == {200}
    assert load.oracle.mistakes == []
    assert service.lost_and_doubled(load) == (0, 0)
