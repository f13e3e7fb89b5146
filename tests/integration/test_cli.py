"""The flask commands, as a person or a program runs them: beside a running service and without one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis

from tests.support.ports import free_port, free_ports, listening
from tests.support.servers import REPOSITORY, GunicornServer, ValkeyServer
from visit_counter import create_app
from visit_counter.config.embedded_files import server_pid, shard_dir, supervisor_lock
from visit_counter.journal.segments import Journal
from visit_counter.shards.ring import Ring, partition_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask import Flask

    from visit_counter.config.settings import Settings

    Run = Callable[..., subprocess.CompletedProcess[str]]

FLASK = Path(sys.executable).with_name("flask")


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Return the settings of the commands, and of the service where there is one."""
    ports = ",".join(map(str, free_ports(2)))
    Journal(tmp_path / "data" / "journal").prepare()  # else the first command waits, in case a service puts it back
    return {"VISITS_DATA_DIR": str(tmp_path / "data"), "VISITS_EMBEDDED_PORTS": ports, "VISITS_FLUSH_SECONDS": "3600"}


@pytest.fixture
def flask(environ: dict[str, str]) -> Run:
    """Run a flask command from the repository's root, as the README says; fail unless its exit status is as given."""

    def run(*arguments: str, status: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("VISITS_")}
        done = subprocess.run(
            [FLASK, *arguments],
            cwd=REPOSITORY,
            env=kept | environ | more,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == status, (done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done

    return run


@pytest.fixture
def shards(two_valkeys: tuple[ValkeyServer, ValkeyServer]) -> str:
    """Two running shards, as VISITS_SHARDS: quicker than embedded ones, which every command would start anew."""
    return ",".join(shard.url for shard in two_valkeys)


@pytest.fixture
def app(settings: Callable[..., Settings]) -> Flask:
    """An application that needs no server."""
    return create_app(settings(VISITS_PROFILE="basic"))


def rows(done: subprocess.CompletedProcess[str]) -> Any:
    """Return what a command printed with --json."""
    return json.loads(done.stdout)


def table(done: subprocess.CompletedProcess[str]) -> list[list[str]]:
    """Return the words of each line that a command printed."""
    return [line.split() for line in done.stdout.splitlines()]


def fetch(server: GunicornServer, method: str, page: str) -> int:
    """Return the count that the service answers."""
    request = urllib.request.Request(f"{server.url}/visits/{page}", method=method)
    with urllib.request.urlopen(request) as reply:
        return int(json.load(reply)["visits"])


def test_without_a_service_the_commands_start_and_end_the_shards(flask: Run, environ: dict[str, str]) -> None:
    ports = [int(port) for port in environ["VISITS_EMBEDDED_PORTS"].split(",")]
    ring = Ring(["redis_7070", "redis_7071"])
    owner = ring.shard_of(partition_of("a/b"))
    assert table(flask("visits", "hit", "a/b")) == [["page", "visits", "served_via"], ["a/b", "1", owner]]
    assert rows(flask("visits", "hit", "a/b", "--count", "2000", "--json")) == [
        {"page": "a/b", "visits": 2001, "served_via": owner}
    ]
    assert table(flask("visits", "get", "a/b", "never"))[1:] == [
        ["a/b", "2,001", owner],
        ["never", "0", ring.shard_of(partition_of("never"))],
    ]
    assert [row["visits"] for row in rows(flask("visits", "get", "never", "a/b", "--json"))] == [0, 2001]
    assert not any(map(listening, ports))


def test_beside_a_service_both_see_the_same_counts(
    flask: Run, gunicorn: Callable[..., GunicornServer], environ: dict[str, str]
) -> None:
    """The embedded shards, too, are those of the service."""
    server = gunicorn(**environ).start()
    assert fetch(server, "POST", "both") == 1
    assert rows(flask("visits", "get", "both", "--json"))[0]["visits"] == 1
    assert rows(flask("visits", "hit", "both", "--json"))[0]["visits"] == 2
    assert fetch(server, "GET", "both") == 2
    flushed = rows(flask("visits", "flush", "--json"))
    assert (flushed[0]["visits"], flushed[0]["pages"], flushed[0]["error"]) == (2, 1, "")
    assert fetch(server, "GET", "both") == 2
    assert fetch(server, "POST", "both") == 3
    assert rows(flask("visits", "get", "both", "--json"))[0]["visits"] == 3
    assert all(row["up"] for row in rows(flask("shards", "status", "--json")))
    assert server.stop() == 0


def test_a_command_refuses_a_data_directory_with_a_planted_link(flask: Run, environ: dict[str, str]) -> None:
    journal = Path(environ["VISITS_DATA_DIR"]) / "journal"
    (journal / "state.json").symlink_to("elsewhere")
    assert "state.json in VISITS_DATA_DIR is a link" in flask("visits", "get", "a", status=1).stderr


def test_the_urls_hold_what_it_takes_to_connect_by_hand(
    flask: Run, gunicorn: Callable[..., GunicornServer], environ: dict[str, str]
) -> None:
    assert "cannot read the password" in flask("shards", "url", status=1).stderr
    gunicorn(**environ).start()
    done = flask("shards", "url", "--json")
    assert "keep these passwords secret" in done.stderr
    assert [row["shard"] for row in rows(done)] == ["redis_7070", "redis_7071"]
    for row, port in zip(rows(done), environ["VISITS_EMBEDDED_PORTS"].split(","), strict=True):
        assert row["url"].endswith(f"@127.0.0.1:{port}")
        with redis.Redis.from_url(row["url"]) as client:
            assert client.ping()
    environ["VISITS_SHARDS"] = "a=redis://:secret@h:1"
    assert rows(flask("shards", "url", "--json")) == [{"shard": "a", "url": "redis://:secret@h:1"}]


def test_beside_a_service_whose_supervisor_was_killed_a_command_ends_nothing(
    flask: Run, gunicorn: Callable[..., GunicornServer], environ: dict[str, str]
) -> None:
    """Nor does what it started to help keep its output open."""
    server = gunicorn(**environ).start()
    data = Path(environ["VISITS_DATA_DIR"])
    dead, healthy = (server_pid(shard_dir(data, name)) for name in ("redis_7070", "redis_7071"))
    os.kill(int(supervisor_lock(data, "redis_7070").read_text().split()[1]), signal.SIGKILL)
    os.kill(dead, signal.SIGKILL)
    assert all(row["up"] for row in rows(flask("shards", "status", "--json")))
    assert all(row["up"] for row in rows(flask("shards", "status", "--json")))
    assert server_pid(shard_dir(data, "redis_7071")) == healthy
    assert fetch(server, "POST", "both") == 1
    assert server.stop() == 0
    assert not any(listening(int(port)) for port in environ["VISITS_EMBEDDED_PORTS"].split(","))


def test_flush_brings_what_is_pending_into_the_shards(flask: Run, environ: dict[str, str], shards: str) -> None:
    environ["VISITS_SHARDS"] = shards
    flask("visits", "hit", "a", "--count", "3")
    report = rows(flask("visits", "journal", "--json"))
    assert (report["pending_visits"], report["pending_pages"]) == (3, 1)
    assert table(flask("visits", "flush"))[1][:2] == ["3", "1"]
    assert table(flask("visits", "flush"))[1][:2] == ["0", "0"]
    report = rows(flask("visits", "journal", "--json"))
    assert (report["pending_visits"], report["pending_pages"], report["damage"]) == (0, 0, [])
    assert report["last_flush_error"] == ""
    assert "pending_visits" in flask("visits", "journal").stdout
    assert rows(flask("visits", "get", "a", "--json"))[0]["visits"] == 3


def test_flush_with_the_shards_down_says_so_and_exits_1(
    flask: Run, two_valkeys: tuple[ValkeyServer, ValkeyServer], shards: str
) -> None:
    flask("visits", "hit", "a", "--count", "3", VISITS_SHARDS=shards)
    for shard in two_valkeys:
        shard.kill()
    [row] = rows(flask("visits", "flush", "--json", status=1, VISITS_SHARDS=shards))
    assert row["visits"] == 0
    assert row["error"]
    two_valkeys[0].start()
    two_valkeys[1].start()
    assert rows(flask("visits", "flush", "--json", VISITS_SHARDS=shards))[0]["visits"] == 3


def test_shards_status_exits_1_when_a_shard_is_down(flask: Run, valkey: ValkeyServer) -> None:
    down = free_port()
    shards = f"up={valkey.url},down=redis://127.0.0.1:{down}"
    found = rows(flask("shards", "status", "--json", status=1, VISITS_SHARDS=shards))
    assert [(row["shard"], row["address"], row["up"]) for row in found] == [
        ("up", f"127.0.0.1:{valkey.port}", True),
        ("down", f"127.0.0.1:{down}", False),
    ]
    assert sum(row["partitions"] for row in found) == 4096
    assert table(flask("shards", "status", status=1, VISITS_SHARDS=shards))[2][:3] == [
        "down",
        f"127.0.0.1:{down}",
        "no",
    ]


def test_shards_locate_needs_no_shard(flask: Run) -> None:
    ring = Ring(["redis_7070", "redis_7071"])
    found = rows(flask("shards", "locate", "a", "b/c", "--json"))
    assert found == [
        {"page": page, "partition": partition_of(page), "shard": ring.shard_of(partition_of(page))}
        for page in ("a", "b/c")
    ]
    assert table(flask("shards", "locate", "a"))[0] == ["page", "partition", "shard"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["visits", "hit", ""], "the page is empty"),
        (["visits", "hit", "x" * 256], "the page is 256 bytes"),
        (["visits", "get", "a", "b\nc"], "control character U+000A"),
        (["visits", "get"], "Missing argument 'PAGE...'"),
        (["visits", "hit", "a", "--count", "0"], "0 is not in the range"),
        (["visits", "hit", "a", "--count", "many"], "'many' is not a valid integer"),
        (["shards", "locate"], "Missing argument 'PAGE...'"),
        (["visits", "reset"], "No such command 'reset'"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_a_wrong_use_is_told_with_status_2(app: Flask, arguments: list[str], said: str) -> None:
    done = app.test_cli_runner().invoke(args=arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert "Usage:" in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["visits", "flush"], "the profile basic has no journal, so there is nothing to flush"),
        (["visits", "journal"], "the profile basic has no journal"),
        (["shards", "locate", "a"], "the profile basic has no shards"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_a_profile_does_not_have_is_told_with_status_1(app: Flask, arguments: list[str], said: str) -> None:
    done = app.test_cli_runner().invoke(args=arguments)
    assert (done.exit_code, done.stdout, done.stderr) == (1, "", f"Error: {said}\n")


def test_why_a_visit_is_not_counted_is_asked_of_the_running_service(
    app: Flask, gunicorn: Callable[..., GunicornServer]
) -> None:
    environ = {"VISITS_PROFILE": "basic", "VISITS_REPEAT_SECONDS": "3600", "VISITS_IGNORE_ADDRESSES": "192.0.2.9"}
    url = f"http://127.0.0.1:{gunicorn('-w', '1', VISITS_ORIGINS='https://a.test', **environ).start().port}"
    forwarded = {"X-Forwarded-For": "192.0.2.1", "User-Agent": "mine"}
    urllib.request.urlopen(urllib.request.Request(f"{url}/visits/caf%C3%A9", headers=forwarded, method="POST")).close()

    def reason(*more: str) -> object:
        done = app.test_cli_runner().invoke(args=["visits", "why", "café", "--url", url, "--json", *more])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout).get("reason")

    assert reason() is None
    assert reason("--address", "192.0.2.1") is None
    assert reason("--address", "192.0.2.1", "--user-agent", "mine") == "repeat"
    assert reason("--address", "192.0.2.9") == "own"
    assert reason("--origin", "https://b.test") == "origin"
    shown = app.test_cli_runner().invoke(args=["visits", "why", "a", "--url", url, "--address", "192.0.2.9"]).stdout
    assert "VISITS_IGNORE_ADDRESSES" in shown


def test_why_is_one_clear_line_where_the_service_cannot_tell(
    app: Flask, gunicorn: Callable[..., GunicornServer]
) -> None:
    environ = {"VISITS_PROFILE": "basic", "VISITS_TRUSTED_PROXIES": "192.0.2.7"}
    url = f"http://127.0.0.1:{gunicorn('-w', '1', **environ).start().port}"
    for arguments, said in (
        (["--url", url, "--address", "192.0.2.1"], "VISITS_TRUSTED_PROXIES"),
        (["--url", f"{url}/other"], "404"),
        (["--url", f"{url}/visits/a?x="], "no answer of this service"),
        (["--url", f"http://127.0.0.1:{free_port()}"], "--url"),
        (["--url", "nowhere"], "--url"),
        (["--url", url, "--user-agent", "a\nb"], "--url"),
    ):
        done = app.test_cli_runner().invoke(args=["visits", "why", "a", *arguments])
        assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (1, "", 1), arguments
        assert said in done.stderr
    assert app.test_cli_runner().invoke(args=["visits", "why", "a", "--address", "here"]).exit_code == 2


def test_wrong_settings_are_told_whole_with_status_1(flask: Run) -> None:
    done = flask("visits", "get", "a", status=1, VISITS_PROFILE="big", VISITS_CACHE_SECONDS="5s")
    assert done.stderr.splitlines() == [
        "visit-counter: wrong settings:",
        "  VISITS_PROFILE is 'big'; allowed: basic, redis, cached, batched, sharded",
        "  VISITS_CACHE_SECONDS is '5s'; allowed: a number of seconds from 0 to 3600, without a unit",
    ]


def test_a_data_directory_that_cannot_be_used_is_one_line(flask: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = flask("visits", "hit", "a", status=1, VISITS_DATA_DIR=str(tmp_path / "file"))
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["visits"], ["hit", "get", "flush", "why", "journal"]),
        (["shards"], ["status", "locate"]),
        (["visits", "hit"], ["PAGE", "--count", "--json", "Count visits"]),
        (["visits", "get"], ["PAGE...", "--json", "Print the count"]),
        (["visits", "flush"], ["--json", "pending"]),
        (["visits", "why"], ["PAGE", "--address", "--origin", "--user-agent", "--url", "--json", "running service"]),
        (["visits", "journal"], ["--json", "segments"]),
        (["shards", "status"], ["--json", "exit status 1"]),
        (["shards", "locate"], ["PAGE...", "--json", "partition"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_help_says_what_a_command_does(app: Flask, command: list[str], words: list[str]) -> None:
    done = app.test_cli_runner().invoke(args=[*command, "--help"])
    assert done.exit_code == 0
    assert [word for word in words if word not in done.stdout] == []
