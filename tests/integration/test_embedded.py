"""The embedded shards: started, adopted, watched and ended, with nothing left over."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support import processes
from tests.support.ports import free_ports, listening
from tests.support.servers import REPOSITORY, ValkeyServer, wait_until
from visit_counter.config import embedded_files as files
from visit_counter.config.embedded_files import server_pid, shard_dir
from visit_counter.embedded.program import server_binary
from visit_counter.embedded.shards import EmbeddedShards, running
from visit_counter.errors import EmbeddedError
from visit_counter.shards.factory import make_store
from visit_counter.shards.redis.resp import identify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from visit_counter.config.settings import Settings

HOLDER = """
import os, sys
from visit_counter.embedded.shards import EmbeddedShards
from visit_counter.config.settings import Settings
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


def folders(settings: Settings) -> dict[int, Path]:
    """Return the directory of the shard on each port."""
    return {
        port: shard_dir(settings.data_dir, shard.name)
        for port, shard in zip(settings.embedded_ports, settings.shards, strict=True)
    }


def pids(settings: Settings) -> list[int]:
    return [server_pid(folder) for folder in folders(settings).values()]


def supervisor_pid(settings: Settings) -> int:
    """Return the process that runs the first shard."""
    return int(files.supervisor_lock(settings.data_dir, settings.shards[0].name).read_text().split()[1])


def password(settings: Settings) -> str:
    return files.read_password(files.password_file(settings.data_dir))


def all_answer(settings: Settings) -> bool:
    return all(identify(port, folder, password(settings)).ready for port, folder in folders(settings).items())


def nothing_listens(settings: Settings) -> bool:
    return not any(listening(port) for port in settings.embedded_ports)


def client(settings: Settings, port: int) -> Any:
    return redis.Redis("127.0.0.1", port, username="default", password=password(settings), decode_responses=True)


def config(settings: Settings, port: int, name: str) -> str:
    with client(settings, port) as connected:
        return str(connected.config_get(name)[name])


def add(settings: Settings, port: int, visits: int) -> int:
    with client(settings, port) as connected:
        return int(connected.incrby("test", visits))


def test_the_shards_are_durable_servers_on_this_machine_alone(embedded: Settings, shards: EmbeddedShards) -> None:
    shards.start()
    assert all_answer(embedded)
    for port, directory in folders(embedded).items():
        wanted = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "save": ""}
        assert {name: config(embedded, port, name) for name in wanted} == wanted
        assert config(embedded, port, "bind") == "127.0.0.1"
        assert directory.stat().st_mode & 0o777 == 0o700
        assert embedded.data_dir.stat().st_mode & 0o777 == 0o700
        assert (directory / "appendonlydir").stat().st_mode & 0o077 == 0


def test_what_was_counted_is_there_at_the_next_start(embedded: Settings, shards: EmbeddedShards) -> None:
    shards.start()
    assert [add(embedded, port, 3) for port in embedded.embedded_ports] == [3, 3]
    shards.stop()
    assert nothing_listens(embedded)
    shards.start()
    assert [add(embedded, port, 1) for port in embedded.embedded_ports] == [4, 4]


def test_ctrl_c_does_not_reach_the_shards(embedded: Settings, shards: EmbeddedShards) -> None:
    shards.start()
    assert not {os.getpgid(pid) for pid in (supervisor_pid(embedded), *pids(embedded))} & {os.getpgid(0)}


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
    assert add(embedded, port, 3) == 3
    before = pids(embedded)
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: pids(embedded)[0] not in (before[0], 0) and all_answer(embedded), "the shard is back")
    assert add(embedded, port, 1) == 4
    assert pids(embedded)[1] == before[1]


def test_the_servers_go_on_for_the_second_user_when_the_first_ends(
    embedded: Settings, shards: EmbeddedShards, holder: Callable[[], subprocess.Popen[str]]
) -> None:
    first = holder()
    before = pids(embedded)
    shards.start()
    first.communicate(timeout=30)
    assert all_answer(embedded)
    assert pids(embedded) == before
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
    os.kill(supervisor_pid(embedded), signal.SIGKILL)
    wait_until(lambda: not supervised(embedded), "the supervisor is gone")
    assert all_answer(embedded)
    shards.stop()
    assert nothing_listens(embedded)


def supervised(settings: Settings) -> bool:
    return all(files.is_supervised(settings.data_dir, shard.name) for shard in settings.shards)


def test_another_supervisor_takes_over_the_servers_that_run_and_starts_the_dead_one(
    embedded: Settings, shards: EmbeddedShards
) -> None:
    shards.start()
    shards.keep()
    before, first = pids(embedded), supervisor_pid(embedded)
    os.kill(first, signal.SIGKILL)
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: not supervised(embedded), "the supervisor is gone")
    shards.keep()
    wait_until(lambda: pids(embedded)[0] not in (before[0], 0) and all_answer(embedded), "the dead server is back")
    assert pids(embedded)[1] == before[1]
    assert supervisor_pid(embedded) != first
    os.kill(before[1], signal.SIGKILL)
    wait_until(lambda: pids(embedded)[1] not in (before[1], 0) and all_answer(embedded), "the other one, too")
    shards.stop()
    assert nothing_listens(embedded)


def test_a_command_leaves_the_servers_of_a_service_whose_supervisor_was_killed(
    embedded: Settings, shards: EmbeddedShards
) -> None:
    """Whether the command has to start a dead server or not."""
    shards.start()
    before = pids(embedded)
    os.kill(supervisor_pid(embedded), signal.SIGKILL)
    with running(embedded):
        assert all_answer(embedded)
    assert all_answer(embedded)
    os.kill(before[0], signal.SIGKILL)
    with running(embedded):
        assert all_answer(embedded)
    assert all_answer(embedded)
    assert pids(embedded)[1] == before[1]
    shards.stop()
    assert nothing_listens(embedded)


def test_a_command_leaves_servers_that_ran_before_it_without_a_service(
    embedded: Settings, holder: Callable[[], subprocess.Popen[str]]
) -> None:
    service = holder()
    before = pids(embedded)
    os.kill(supervisor_pid(embedded), signal.SIGKILL)
    service.kill()
    service.wait()
    with running(embedded):
        assert pids(embedded) == before
    assert pids(embedded) == before
    later = EmbeddedShards(embedded)
    later.start()
    assert pids(embedded) == before
    later.stop()
    assert nothing_listens(embedded)


def test_the_supervisor_ends_its_servers_on_sigterm(embedded: Settings, shards: EmbeddedShards) -> None:
    shards.start()
    os.kill(supervisor_pid(embedded), signal.SIGTERM)
    wait_until(lambda: not supervised(embedded), "the supervisor is gone")
    assert nothing_listens(embedded)


def test_a_server_started_by_hand_on_our_data_is_used_and_left_running(
    embedded: Settings, shards: EmbeddedShards
) -> None:
    port, folder = next(iter(folders(embedded).items()))
    by_hand = ValkeyServer(folder, port).start()
    try:
        shards.start()
        assert add(embedded, port, 3) == 3
        shards.stop()
        assert by_hand.runs()
    finally:
        by_hand.kill()


def test_a_server_started_by_hand_is_replaced_when_it_goes_away(embedded: Settings, shards: EmbeddedShards) -> None:
    port, folder = next(iter(folders(embedded).items()))
    by_hand = ValkeyServer(folder, port).start()
    try:
        shards.start()
        assert add(embedded, port, 3) == 3
    finally:
        by_hand.kill()
    wait_until(lambda: all_answer(embedded), "the supervisor's own server answers")
    assert add(embedded, port, 1) == 4


def written_anew(settings: Settings) -> bool:
    """Tell whether all servers have their files again, and are supervised."""
    with suppress(EmbeddedError, redis.RedisError, OSError):
        return supervised(settings) and all(
            server_pid(folder)
            and (folder / "appendonlydir" / "appendonly.aof.manifest").exists()
            and "aof_rewrite_in_progress:0" in info(settings, port)
            for port, folder in folders(settings).items()
        )
    return False


def info(settings: Settings, port: int) -> str:
    with client(settings, port) as connected:
        return "\n".join(f"{name}:{value}" for name, value in connected.info("persistence").items())


@pytest.mark.parametrize("found", [False, True])
@pytest.mark.parametrize("removed", [".", "shards", "shards/redis_7070", "shards/redis_7070/appendonlydir"])
def test_files_that_are_removed_under_the_servers_are_written_anew(
    embedded: Settings, shards: EmbeddedShards, removed: str, found: bool
) -> None:
    """Also of servers that their supervisor has `found`, left by one that was killed."""
    shards.start()
    if found:
        os.kill(supervisor_pid(embedded), signal.SIGKILL)
        wait_until(lambda: not supervised(embedded), "the supervisor is gone")
        shards.keep()
        wait_until(lambda: supervised(embedded), "another supervisor has taken over")
    worker = EmbeddedShards(embedded)
    worker.keep()
    assert [add(embedded, port, 3) for port in embedded.embedded_ports] == [3, 3]
    before, secret = (supervisor_pid(embedded), pids(embedded)), password(embedded)
    shutil.rmtree(embedded.data_dir / removed, ignore_errors=True)
    wait_until(lambda: written_anew(embedded), "the files are there again")
    worker.keep()
    assert (supervisor_pid(embedded), pids(embedded), password(embedded)) == (*before, secret)
    with running(embedded):
        assert all_answer(embedded)
    assert [add(embedded, port, 1) for port in embedded.embedded_ports] == [4, 4]
    worker.leave()
    shards.stop()
    assert nothing_listens(embedded)
    with running(embedded):
        assert [add(embedded, port, 1) for port in embedded.embedded_ports] == [5, 5]


# Names and ports


def test_a_shard_keeps_its_name_and_counts_on_another_port(settings: Callable[..., Settings]) -> None:
    for visits in (1, 2, 3):
        made = settings(VISITS_EMBEDDED_PORTS=",".join(map(str, free_ports(2))))
        assert [shard.name for shard in made.shards] == ["redis_7070", "redis_7071"]
        with running(made):
            assert [add(made, port, 1) for port in made.embedded_ports] == [visits, visits]


def test_a_server_that_was_left_on_the_port_of_before_is_ended_first(
    settings: Callable[..., Settings], holder: Callable[[], subprocess.Popen[str]], embedded: Settings
) -> None:
    """Two servers on the files of one shard would destroy them."""
    service = holder()
    assert [add(embedded, port, 3) for port in embedded.embedded_ports] == [3, 3]
    os.kill(supervisor_pid(embedded), signal.SIGKILL)
    service.kill()
    service.wait()
    # The ports exchanged, so that each finds the other's server at its own.
    first, second = embedded.embedded_ports
    moved = settings(VISITS_EMBEDDED_PORTS=f"{second},{first}", VISITS_DATA_DIR=str(embedded.data_dir))
    left = pids(embedded)
    with running(moved):
        assert [add(moved, port, 1) for port in moved.embedded_ports] == [4, 4]
        assert not any(map(processes.runs, left))


def test_other_ports_than_those_of_a_running_service_are_one_clear_error(
    settings: Callable[..., Settings], embedded: Settings, shards: EmbeddedShards
) -> None:
    shards.start()
    ports = ",".join(map(str, free_ports(2)))
    other = EmbeddedShards(settings(VISITS_EMBEDDED_PORTS=ports, VISITS_DATA_DIR=str(embedded.data_dir)))
    with pytest.raises(
        EmbeddedError, match=rf"^the shard redis_7070 runs on port {embedded.embedded_ports[0]} already"
    ):
        other.start()
    assert all_answer(embedded)


# The password


def test_nobody_without_the_password_may_do_anything(embedded: Settings, shards: EmbeddedShards) -> None:
    shards.start()
    for port in embedded.embedded_ports:
        with (
            redis.Redis("127.0.0.1", port, retry=Retry(NoBackoff(), 0)) as stranger,
            pytest.raises(redis.AuthenticationError),
        ):
            stranger.flushall()
    assert files.password_file(embedded.data_dir).stat().st_mode & 0o777 == 0o600


LISTENER = """
import os, socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
server.settimeout(30)
print("listens", flush=True)
for _ in range(int(sys.argv[2])):
    client, _ = server.accept()
    client.settimeout(30)
    print("got", client.recv(1000), flush=True)
    client.close()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
def test_the_password_is_not_sent_to_another_user_who_has_taken_the_port(
    embedded: Settings, shards: EmbeddedShards
) -> None:
    files.prepare(embedded.data_dir, [shard.name for shard in embedded.shards])
    # The interpreter may be where only root can start it, so it changes its user itself.
    code = "import os, socket; os.setgid(65533); os.setuid(65533)\n" + LISTENER
    command = [sys.executable, "-c", code, str(embedded.embedded_ports[0]), "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        assert other.stdout.readline() == "listens\n"
        with pytest.raises(EmbeddedError, match="is taken by a program of another user"):
            shards.start()
        assert not make_store(embedded.shards[0]).ping()
        assert other.stdout.read() == "got b''\ngot b''\n"


def test_no_process_has_the_password_in_its_arguments_or_environment(
    embedded: Settings, shards: EmbeddedShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISITS_SHARDS", "redis://:canary@127.0.0.1:1")
    shards.start()
    for pid in (supervisor_pid(embedded), *pids(embedded)):
        said = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
        assert password(embedded).encode() not in said
        assert b"canary" not in said


def test_a_server_of_the_version_without_passwords_is_used_and_then_has_one(
    embedded: Settings, shards: EmbeddedShards
) -> None:
    """It was left by a supervisor that was killed; its data has no password, no names and no locks."""
    port, folder = next(iter(folders(embedded).items()))
    old = ValkeyServer(folder, port, pidfile=str(folder / files.PID_FILE)).start()
    with old.client() as stranger:
        assert stranger.incrby("test", 3) == 3
    shards.start()
    assert server_pid(folder) == old.pid
    wait_until(lambda: config(embedded, port, "requirepass") == password(embedded), "it has the password")
    with old.client() as stranger, pytest.raises(redis.AuthenticationError):
        stranger.flushall()
    assert make_store(embedded.shards[0]).ping()
    shards.stop()
    assert not old.runs()


@pytest.mark.parametrize("secret", ["", "hunter2"])
def test_another_redis_on_the_port_is_one_clear_error(
    embedded: Settings, shards: EmbeddedShards, tmp_path: Path, secret: str
) -> None:
    port = embedded.embedded_ports[1]
    options = {"requirepass": secret} if secret else {}
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
    broken = folders(embedded)[port] / "appendonlydir"
    broken.mkdir(parents=True)
    (broken / "appendonly.aof.manifest").write_text("no manifest\n")
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
    assert not any(map(processes.runs, started))


def test_a_command_beside_a_service_uses_its_shards(embedded: Settings, shards: EmbeddedShards) -> None:
    shards.start()
    before = pids(embedded)
    with running(embedded):
        assert pids(embedded) == before
    assert pids(embedded) == before


def test_without_any_server_program_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EmbeddedError, match="set VISITS_SHARDS to servers of your own"):
        server_binary()
