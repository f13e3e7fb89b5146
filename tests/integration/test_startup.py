"""How the service starts and ends under gunicorn, and what it says when it cannot start."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.ports import free_port, free_ports, listening
from tests.support.servers import REPOSITORY, GunicornServer, ValkeyServer, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def service(gunicorn: Callable[..., GunicornServer]) -> Callable[..., GunicornServer]:
    """Make services of the stub app."""
    return functools.partial(gunicorn, app="tests.support.stub_app:app")


@pytest.fixture
def ports() -> list[int]:
    """Return two free ports for embedded shards."""
    return free_ports(2)


@pytest.fixture
def sharded(service: Callable[..., GunicornServer], ports: list[int]) -> Callable[..., GunicornServer]:
    """Make services with two embedded shards on free ports."""
    return functools.partial(service, VISITS_EMBEDDED_PORTS=",".join(map(str, ports)))


def said(server: GunicornServer, word: str) -> list[str]:
    return sorted(re.findall(rf"^{word} in (\d+)$", server.log, re.MULTILINE))


def up(server: GunicornServer, workers: int = 2) -> GunicornServer:
    """Start and wait until all workers have started: one that still boots may miss a signal."""
    server.start()
    wait_until(lambda: len(said(server, "started")) >= workers, f"{workers} workers have started")
    return server


def answers(server: GunicornServer, path: str) -> bool:
    """Tell whether the answer is 200."""
    with suppress(urllib.error.HTTPError), urllib.request.urlopen(f"{server.url}{path}", timeout=20):
        return True
    return False


def opened(pid: int, directory: Path) -> bool:
    """Tell whether a process has a segment in a journal's directory open."""
    with suppress(FileNotFoundError):
        links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
        return any(link.startswith(str(directory)) and link.endswith(".log") for link in links)
    return False


def nothing_listens(*ports: int) -> bool:
    return not any(map(listening, ports))


def fails_with(server: GunicornServer, message: str) -> None:
    assert server.spawn().wait() == 1
    (line,) = [line for line in server.log.splitlines() if not line.startswith("[")]
    assert re.fullmatch(f"visit-counter: {message}", line), line


def test_the_start_log_says_where_everything_is(sharded: Callable[..., GunicornServer], ports: list[int]) -> None:
    server = up(sharded())
    shards = f"redis_7070 at 127.0.0.1:{ports[0]}, redis_7071 at 127.0.0.1:{ports[1]}"
    for line in (
        f"Visit Counter at {server.url}, profile sharded",
        f"shards (embedded): {shards}",
        f"data directory: {server.dir / 'data'}",
    ):
        assert line in server.log
    assert all(map(listening, ports))
    assert len(server.worker_pids) == 2


@pytest.mark.parametrize("end", ["interrupt", "SIGTERM", "SIGQUIT"])
def test_every_worker_stops_its_service_once_and_nothing_is_left(
    sharded: Callable[..., GunicornServer], ports: list[int], end: str
) -> None:
    server = up(sharded("-w", "3"), workers=3)
    status = server.interrupt() if end == "interrupt" else server.stop(getattr(signal, end))
    assert status == 0
    assert nothing_listens(server.port, *ports)
    assert said(server, "stopped") == said(server, "started")
    assert "Traceback" not in server.log


def shard_files(server: GunicornServer, name: str) -> tuple[int, int]:
    """Return the process ids of the supervisor and of the server of an embedded shard."""
    folder = server.dir / "data" / "shards" / name
    return int((folder / "supervisor.lock").read_text().split()[1]), int((folder / "valkey.pid").read_text())


@pytest.mark.parametrize("worker", ["visit_counter.server.worker.VisitWorker", "gthread"])
@pytest.mark.parametrize("profile", ["sharded", "cached"])
def test_a_supervisor_that_was_killed_is_replaced_while_the_service_runs(
    gunicorn: Callable[..., GunicornServer], ports: list[int], worker: str, profile: str
) -> None:
    server = gunicorn("-k", worker, VISITS_PROFILE=profile, VISITS_EMBEDDED_PORTS=",".join(map(str, ports))).start()
    supervisor, shard = shard_files(server, "redis_7070")
    os.kill(supervisor, signal.SIGKILL)
    os.kill(shard, signal.SIGKILL)
    wait_until(lambda: shard_files(server, "redis_7070")[0] != supervisor, "another supervisor has taken over")
    wait_until(lambda: shard_files(server, "redis_7070")[1] != shard and listening(ports[0]), "the shard is back")
    assert server.stop() == 0
    assert nothing_listens(server.port, *ports)


def test_nothing_is_left_after_the_master_is_killed(sharded: Callable[..., GunicornServer], ports: list[int]) -> None:
    server = up(sharded())
    server.stop(signal.SIGKILL)
    wait_until(lambda: nothing_listens(server.port, *ports), "the workers and the shards are gone")


@pytest.mark.parametrize("arguments", [("--preload",), ("--reload",), ("--max-requests", "2"), ("-k", "sync")])
def test_gunicorns_own_options_work(
    sharded: Callable[..., GunicornServer], ports: list[int], arguments: tuple[str, ...]
) -> None:
    server = up(sharded(*arguments))
    assert server.stop() == 0
    assert nothing_listens(server.port, *ports)


def test_a_reload_keeps_the_shards_and_the_end_after_it_ends_them(
    sharded: Callable[..., GunicornServer], ports: list[int]
) -> None:
    server = up(sharded())
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: len(said(server, "started")) == 4, "new workers have started")
    wait_until(lambda: len(said(server, "stopped")) == 2, "the old workers have stopped")
    assert all(map(listening, ports))
    assert server.stop() == 0
    assert nothing_listens(*ports)


def test_a_second_master_takes_over_the_shards_of_the_first(
    sharded: Callable[..., GunicornServer], ports: list[int], tmp_path: Path
) -> None:
    data = str(tmp_path / "data")
    first = up(sharded(VISITS_DATA_DIR=data))
    second = up(sharded(VISITS_DATA_DIR=data))
    assert first.stop() == 0
    wait_until(lambda: all(map(listening, ports)), "the second master's shards answer")
    assert second.stop() == 0
    assert nothing_listens(*ports)


def test_an_upgrade_in_place_keeps_the_shards(sharded: Callable[..., GunicornServer], ports: list[int]) -> None:
    server = up(sharded())
    server.send_signal(signal.SIGUSR2)
    wait_until(lambda: server.log.count("Visit Counter at") == 2, "the new master is ready")
    wait_until(lambda: len(said(server, "started")) == 4, "the new master's workers have started")
    new = int(re.findall(r"\[(\d+)\] \[INFO\] Visit Counter at", server.log)[1])
    assert server.stop() == 0
    wait_until(lambda: all(map(listening, ports)), "the new master's shards answer")
    os.kill(new, signal.SIGTERM)
    wait_until(lambda: nothing_listens(server.port, *ports), "the new master is gone")


def test_counts_are_there_after_the_ports_were_changed(gunicorn: Callable[..., GunicornServer], tmp_path: Path) -> None:
    for visits in (1, 2):
        ports = free_ports(2)
        environ = {"VISITS_EMBEDDED_PORTS": ",".join(map(str, ports)), "VISITS_DATA_DIR": str(tmp_path / "data")}
        server = gunicorn(**environ).start()
        request = urllib.request.Request(f"{server.url}/visits/blog/hello", method="POST")
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert json.load(answer) == {"visits": visits, "served_via": "redis_7070"}
        assert server.stop() == 0


def test_data_of_a_shard_that_no_port_is_for_is_told_at_the_start(
    sharded: Callable[..., GunicornServer], tmp_path: Path
) -> None:
    """It was left by the version that named shards by their ports, after the ports were changed."""
    for port in (7070, 9001):
        (tmp_path / "data" / "shards" / f"redis_{port}").mkdir(parents=True)
    (tmp_path / "data" / "shards" / "names").write_text("redis_7070\nredis_7071\n")
    server = up(sharded(VISITS_DATA_DIR=str(tmp_path / "data")))
    assert f"{tmp_path}/data/shards has counts of redis_9001, which no shard uses" in server.log


@pytest.mark.parametrize("profile", ["basic", "cached"])
def test_a_profile_of_one_process_starts_one_worker_and_refuses_more(
    sharded: Callable[..., GunicornServer], profile: str
) -> None:
    server = sharded(VISITS_PROFILE=profile).start()
    assert len(server.worker_pids) == 1
    fails_with(sharded("-w", "2", VISITS_PROFILE=profile), rf"2 workers with VISITS_PROFILE {profile}; allowed: 1, .*")


@pytest.mark.parametrize("given", ["option", "environment"])
def test_no_workers_at_all_are_refused(service: Callable[..., GunicornServer], given: str) -> None:
    if given == "option":
        fails_with(service("-w", "0", VISITS_PROFILE="basic"), r"0 workers would answer nobody; allowed: -w 1 or more")
    else:
        server = service(VISITS_PROFILE="basic", WEB_CONCURRENCY="0")
        fails_with(server, r"WEB_CONCURRENCY is '0'; allowed: a whole number of workers from 1")


@pytest.mark.parametrize("worker", [(), ("-k", "gthread")], ids=["ours", "gthread"])
def test_no_threads_at_all_are_refused(service: Callable[..., GunicornServer], worker: tuple[str, ...]) -> None:
    server = service("--threads", "0", *worker, VISITS_PROFILE="basic")
    fails_with(server, r"0 threads would answer nobody; allowed: --threads 1 or more")


@pytest.mark.parametrize("uri", ["eventlet.nothing", "visit_counter.nothing.Worker"])
@pytest.mark.parametrize("given", ["option", "environment"])
def test_a_worker_class_that_cannot_be_loaded_is_one_clear_line(
    service: Callable[..., GunicornServer], uri: str, given: str
) -> None:
    server = service("-k", uri) if given == "option" else service(GUNICORN_CMD_ARGS=f"-k {uri}")
    fails_with(server, rf"the worker class {uri} cannot be used: .*\w.*; allowed: gthread, or no -k")


def test_the_environment_says_how_many_workers(service: Callable[..., GunicornServer], valkey: ValkeyServer) -> None:
    up(service(VISITS_SHARDS=valkey.url, WEB_CONCURRENCY="3"), workers=3)


def test_wrong_settings_stop_the_start_with_all_mistakes(service: Callable[..., GunicornServer]) -> None:
    server = service(VISITS_PROFILE="none", VISITS_FLUSH_SECONDS="30s").spawn()
    assert server.wait() == 1
    assert server.log.splitlines() == [
        "visit-counter: wrong settings:",
        "  VISITS_PROFILE is 'none'; allowed: basic, redis, cached, batched, sharded",
        "  VISITS_FLUSH_SECONDS is '30s'; allowed: a number of seconds from 0.05 to 3600, without a unit",
    ]


def test_a_taken_address_is_one_clear_line(service: Callable[..., GunicornServer]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = rf"the address 127.0.0.1:{port} is in use by something else; choose another one with -b host:port"
        fails_with(service(port=port, VISITS_PROFILE="basic"), message)


def test_a_taken_port_of_a_shard_is_one_clear_line(
    sharded: Callable[..., GunicornServer], ports: list[int], tmp_path: Path
) -> None:
    other = ValkeyServer(tmp_path / "other", ports[1]).start()
    try:
        fails_with(sharded(), rf"port {ports[1]} on 127.0.0.1 is taken by another Redis or Valkey.*")
    finally:
        other.kill()
    assert nothing_listens(*ports)


def test_an_unwritable_data_directory_is_one_clear_line(service: Callable[..., GunicornServer], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fails_with(service(VISITS_DATA_DIR=str(tmp_path / "file")), r"cannot write to VISITS_DATA_DIR .*/file: File exists")


def test_a_data_directory_with_a_planted_link_is_one_clear_line(
    service: Callable[..., GunicornServer], tmp_path: Path
) -> None:
    (tmp_path / "data" / "journal").mkdir(parents=True)
    (tmp_path / "data" / "journal" / "state.json").symlink_to(tmp_path / "elsewhere")
    fails_with(service(VISITS_DATA_DIR=str(tmp_path / "data")), r".*/state.json in VISITS_DATA_DIR is a link, .*")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")
@pytest.mark.parametrize("profile", ["redis", "sharded"])
def test_another_users_data_directory_is_one_clear_line(
    service: Callable[..., GunicornServer], tmp_path: Path, profile: str
) -> None:
    (tmp_path / "data").mkdir()
    os.chown(tmp_path / "data", 65533, 65533)
    server = service(VISITS_DATA_DIR=str(tmp_path / "data"), VISITS_PROFILE=profile)
    fails_with(server, r"VISITS_DATA_DIR .* belongs to the user 65533, but this is the user root; .*")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_data_directory_that_was_open_to_others_is_closed_and_told(
    service: Callable[..., GunicornServer], valkey: ValkeyServer, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o777)
    server = up(service(VISITS_SHARDS=valkey.url, VISITS_DATA_DIR=str(tmp_path / "data")))
    assert "could be written to by other users; it cannot any more" in server.log
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o755


def test_that_the_counts_are_on_other_shards_is_told_once_at_the_start(
    gunicorn: Callable[..., GunicornServer], two_valkeys: tuple[ValkeyServer, ValkeyServer]
) -> None:
    first, second = (f"{name}={shard.url}" for name, shard in zip("ab", two_valkeys, strict=True))
    gunicorn(VISITS_SHARDS=first).start().stop()
    server = gunicorn("-w", "3", VISITS_SHARDS=f"{first},{second}", VISITS_FLUSH_SECONDS="0.1").start()
    notice = "VISITS_SHARDS has a, b, the counts are on a; flask shards rebalance moves them"
    assert server.log.index(notice) < server.log.index("Visit Counter at")
    for number in range(20):
        with urllib.request.urlopen(f"{server.url}/visits/{number}", timeout=30):
            pass
    server.stop()
    assert server.log.count("the counts are on") == 1


def test_a_wrong_password_is_one_clear_line_without_it(service: Callable[..., GunicornServer], tmp_path: Path) -> None:
    shard = ValkeyServer(tmp_path / "shard", requirepass="right").start()
    try:
        server = service(VISITS_SHARDS=f"redis://:hunter2@127.0.0.1:{shard.port}")
        fails_with(server, rf"redis_{shard.port}: 127.0.0.1:{shard.port} refuses: .*; see VISITS_SHARDS")
        assert "hunter2" not in server.log
        fails_with(service(VISITS_SHARDS=f"redis://127.0.0.1:{shard.port}"), r".* refuses: .*")
    finally:
        shard.kill()


@pytest.fixture
def http_port() -> Iterator[int]:
    """Return a port where something speaks another language than Redis."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client:
                client.recv(4096)
                client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_shard_that_is_not_redis_is_one_clear_line(service: Callable[..., GunicornServer], http_port: int) -> None:
    server = service(VISITS_SHARDS=f"redis://127.0.0.1:{http_port}")
    fails_with(server, rf"redis_{http_port}: 127.0.0.1:{http_port} is not Redis or Valkey; see VISITS_SHARDS")


def test_a_shard_that_is_down_is_a_warning(service: Callable[..., GunicornServer]) -> None:
    port = free_port()
    server = service(VISITS_SHARDS=f"redis://127.0.0.1:{port}").start()
    assert f"shard redis_{port}: 127.0.0.1:{port} does not answer" in server.log


def test_a_service_that_cannot_start_ends_the_master_with_one_line(service: Callable[..., GunicornServer]) -> None:
    server = service(VISITS_PROFILE="basic", STUB_FAILS="1").spawn()
    assert server.wait() == 3
    assert "visit-counter: the journal cannot be opened" in server.log.splitlines()
    assert "Traceback" not in server.log


@pytest.mark.parametrize("worker", ["visit_counter.server.worker.VisitWorker", "gthread"])
def test_a_worker_that_starts_while_the_journal_cannot_be_opened_waits_for_it_and_the_others_serve(
    gunicorn: Callable[..., GunicornServer], valkey: ValkeyServer, worker: str
) -> None:
    server = gunicorn("-k", worker, VISITS_SHARDS=valkey.url).start()
    journal = server.dir / "data" / "journal"
    wait_until(
        lambda: sum(opened(pid, journal) for pid in server.worker_pids) == 2, "both workers have the journal open"
    )
    away = journal.rename(journal.with_name("away"))
    journal.write_bytes(b"")
    os.kill(server.worker_pids[0], signal.SIGKILL)
    wait_until(lambda: "cannot open the journal and waits" in server.log, "the new worker waits")
    assert answers(server, "/live"), server.log
    journal.unlink()
    away.rename(journal)
    wait_until(lambda: answers(server, "/ready"), "visits are accepted")
    assert server.runs()


@pytest.mark.parametrize("options", [(), ("-k", "gthread"), ("--preload",)])
def test_who_starts_while_the_data_directory_is_gone_waits_until_those_who_know_the_journal_have_put_it_back(
    gunicorn: Callable[..., GunicornServer], valkey: ValkeyServer, options: tuple[str, ...]
) -> None:
    server = gunicorn(*options, VISITS_SHARDS=valkey.url, VISITS_FLUSH_SECONDS="3600").start()
    data = server.dir / "data"
    wait_until(
        lambda: sum(opened(pid, data / "journal") for pid in server.worker_pids) == 2, "both workers have it open"
    )
    with urllib.request.urlopen(urllib.request.Request(f"{server.url}/visits/a", method="POST"), timeout=30):
        pass
    writer = (data / "journal" / "writer").read_text()
    survivor, other = server.worker_pids
    os.kill(survivor, signal.SIGSTOP)  # so that it does not put the journal back at once
    data.rename(server.dir / "away")
    os.kill(other, signal.SIGKILL)
    wait_until(lambda: "cannot open the journal and waits" in server.log, "the new worker waits")
    command = subprocess.Popen(
        [Path(sys.executable).with_name("flask"), "visits", "hit", "a", "--json"],
        cwd=REPOSITORY,
        env={**os.environ, "VISITS_SHARDS": valkey.url, "VISITS_DATA_DIR": str(data)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with command:
        assert command.stderr is not None
        assert "waiting up to 5 s" in command.stderr.readline()
        os.kill(survivor, signal.SIGCONT)
        said, _ = command.communicate()
    assert json.loads(said)[0]["visits"] == 2
    assert (data / "journal" / "writer").read_text() == writer
    wait_until(lambda: sum(opened(pid, data / "journal") for pid in server.worker_pids) == 2, "both have it open again")
    wait_until(lambda: all(answers(server, "/ready") for _ in range(8)), "every worker accepts visits")
    assert "another journal" not in server.log


@pytest.mark.parametrize("worker", ["visit_counter.server.worker.VisitWorker", "gthread"])
def test_a_warning_of_the_host_is_one_line_with_time_and_level_however_many_workers_come_to_it(
    service: Callable[..., GunicornServer], valkey: ValkeyServer, worker: str
) -> None:
    server = up(service("-w", "3", "-k", worker, VISITS_SHARDS=valkey.url, STUB_WARNS="1"), workers=3)
    lines = [line for line in server.log.splitlines() if "odd" in line and not line.startswith(" ")]
    form = r"\[[-\d]+ [:\d]+ [+-]\d{4}\] \[\d+\] \[WARNING\] (.*: )?(the host|a library) is odd"
    assert len(lines) == 2, lines
    assert all(re.fullmatch(form, line) for line in lines), lines
