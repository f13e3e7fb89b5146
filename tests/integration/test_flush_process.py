"""A flush of many pages, which runs in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import Request, urlopen

import pytest

from tests.faults.service import INSIDE
from tests.support.servers import REPOSITORY, GunicornServer, ValkeyServer, running_valkeys, wait_until
from visit_counter.counting.cache import LocalCache
from visit_counter.flush import launcher as flush_launcher
from visit_counter.flush.launcher import FlushProcess
from visit_counter.journal.buffer import WriteBuffer
from visit_counter.journal.checkpoint import Checkpoint
from visit_counter.journal.segments import Journal
from visit_counter.runtime.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from visit_counter.config.settings import Settings

PAGES = 5100  # more than the service flushes in one of its own threads
SECRET = "canary-5d1c"
WORKERS = ("visit_counter.server.worker.VisitWorker", "gthread")


def visit_pages(journal: Path) -> None:
    """Count a visit of each page at once, as another process of the host."""
    buffer = WriteBuffer(Journal(journal), fsync="os")
    buffer.open()
    with closing(buffer), buffer.lock:
        buffer.append([(f"page/{number}", 1) for number in range(PAGES)])


def stored(valkeys: tuple[ValkeyServer, ...]) -> dict[str, int]:
    found: dict[str, int] = {}
    for valkey in valkeys:
        with valkey.client() as client:
            for key in client.scan_iter("visits:{*}", count=5000):
                found |= {page: int(visits) for page, visits in client.hgetall(key).items() if page[0] != "\t"}
    return found


@pytest.fixture
def valkeys(tmp_path: Path) -> Iterator[tuple[ValkeyServer, ValkeyServer]]:
    with running_valkeys(tmp_path / "first", tmp_path / "second", requirepass=SECRET) as (first, second):
        yield first, second


@pytest.fixture
def frozen(
    tmp_path: Path, valkeys: tuple[ValkeyServer, ValkeyServer], request: pytest.FixtureRequest
) -> Iterator[tuple[GunicornServer, int]]:
    """A service that was started from another directory, and its flush process, frozen before it sends anything."""
    faults, elsewhere = tmp_path / "faults", tmp_path / "elsewhere"
    for folder in (faults, tmp_path / "faults.taken", elsewhere):
        folder.mkdir()
    (tmp_path / "list").write_text(",".join(valkey.url for valkey in valkeys), encoding="ascii")
    service = GunicornServer(
        tmp_path / "service",
        *("-c", str(REPOSITORY / "gunicorn.conf.py"), "-k", request.param),
        VISITS_SHARDS_FILE=str(tmp_path / "list"),
        VISITS_FLUSH_SECONDS="0.2",
        PYTHONPATH=str(INSIDE),
        FAULTS_DIR=str(faults),
    )
    service.cwd = elsewhere
    service.start()
    try:
        (faults / "stop.send").touch()
        visit_pages(service.dir / "data" / "journal")
        taken = tmp_path / "faults.taken"
        wait_until(lambda: any(taken.iterdir()), "the flush process is about to send")
        pid = int(next(taken.iterdir()).suffix[1:])
        try:
            yield service, pid
        finally:
            with suppress(ProcessLookupError):  # it has done its work
                os.kill(pid, signal.SIGKILL)
    finally:
        service.stop()


@pytest.mark.parametrize("frozen", WORKERS, indirect=True)
def test_no_password_is_in_the_environment_or_the_arguments_of_the_flush_process(
    frozen: tuple[GunicornServer, int], valkeys: tuple[ValkeyServer, ValkeyServer]
) -> None:
    """It is started from whatever directory the service was, and brings each visit into its shard once."""
    service, pid = frozen
    arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    environ = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"visit_counter.flush.process" in arguments
    assert SECRET.encode() not in environ
    assert b"VISITS_" not in environ
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: f"flushed {PAGES} visits" in service.log, "the flush process tells what it did")
    assert re.search(
        rf"^\[\d{{4}}-\d\d-\d\d [\d:]+ [+-]\d{{4}}\] \[{pid}\] \[INFO\] flushed", service.log, re.MULTILINE
    )
    assert stored(valkeys) == {f"page/{number}": 1 for number in range(PAGES)}


@pytest.mark.parametrize("frozen", WORKERS, indirect=True)
def test_a_flush_that_hangs_is_told_while_it_hangs_and_visits_are_answered(frozen: tuple[GunicornServer, int]) -> None:
    service, pid = frozen

    def is_overdue() -> bool:
        said = service.health()
        return said["api_status"] == "degraded" and "no flush has reached every shard for" in said["reason"]

    wait_until(is_overdue, "it is told")
    with urlopen(Request(f"{service.url}/visits/page/1", method="POST"), timeout=30) as answer:
        assert json.load(answer)["visits"] == 2
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: service.health()["api_status"] == "healthy", "a flush has come to its end")


def test_a_flush_process_that_hangs_stops_no_other_job_and_is_killed_in_the_end(
    settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, valkey: ValkeyServer
) -> None:
    monkeypatch.setattr("visit_counter.runtime.service._FLUSH_PROCESS_SECONDS", (1.0, 1.0))
    faults = tmp_path / "faults"
    for folder in (faults, tmp_path / "faults.taken"):
        folder.mkdir()
    (faults / "stop.send").touch()
    monkeypatch.setenv("FAULTS_DIR", str(faults))
    monkeypatch.syspath_prepend(str(INSIDE))
    service = Service(
        settings(VISITS_SHARDS=valkey.url, VISITS_FLUSH_SECONDS="0.2"), LocalCache(threshold=9, ttl_seconds=1.0)
    )
    service.start()
    try:
        journal = tmp_path / "data" / "journal"
        visit_pages(journal)
        wait_until(lambda: any((tmp_path / "faults.taken").iterdir()), "the flush process is frozen")
        followed: list[object] = []
        monkeypatch.setattr(WriteBuffer, "tick", lambda _self, rebase: followed.append(rebase))
        assert Checkpoint.load(journal / "state.json").last_flush is None or not stored((valkey,))
        wait_until(lambda: followed, "the journal is followed while the flush hangs")
        wait_until(lambda: len(stored((valkey,))) == PAGES, "it is killed, and the next flush brings the visits")
    finally:
        service.stop()


def test_a_flush_that_takes_longer_than_one_look_at_it_is_waited_for(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, valkey: ValkeyServer
) -> None:
    monkeypatch.setattr(flush_launcher, "_POLL_SECONDS", 0.001)
    given = settings(VISITS_SHARDS=valkey.url)
    visit_pages(given.data_dir / "journal")
    FlushProcess(given, 60.0).run()
    assert len(stored((valkey,))) == PAGES


def test_a_service_that_ends_gives_its_flush_process_a_few_seconds(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(flush_launcher, "_LAST_SECONDS", 0.0)
    monkeypatch.setattr(sys, "executable", "/bin/sh")
    monkeypatch.setattr(flush_launcher, "_ARGUMENTS", ("-c", "sleep 600"))
    runs = FlushProcess(settings(VISITS_PROFILE="batched"), 600.0)
    runs.hurry()
    runs.run()
    assert "it is killed" in caplog.text


def test_a_flush_process_says_in_one_line_what_kept_it_from_flushing(
    settings: Callable[..., Settings], capfd: pytest.CaptureFixture[str]
) -> None:
    given = settings(VISITS_SHARDS="one=redis://127.0.0.1:1")
    given.data_dir.touch()
    FlushProcess(given, 60.0).run()
    [line] = capfd.readouterr().err.splitlines()
    assert re.match(r"\[[^]]+\] \[\d+\] \[ERROR\] .*Not a directory", line)
