"""The package as people install it: a wheel, an environment of its own, and a directory without a checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.support import processes
from tests.support.ports import free_port, free_ports
from tests.support.servers import REPOSITORY, plain_environ, wait_until

PROGRAM = [sys.executable, "-m", "visit_counter"]
NO_INDEX = re.compile(r"NewConnectionError|ConnectTimeout|NameResolutionError|ProxyError")


def run(*words: object, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [str(word) for word in words]
    return subprocess.run(
        command, cwd=cwd, env=plain_environ() | more, capture_output=True, text=True, timeout=240, check=False
    )


def pip(*words: object, cwd: Path) -> None:
    """Run this environment's pip; skip the test where it finds no index."""
    done = run(sys.executable, "-m", "pip", *words, cwd=cwd)
    if done.returncode and NO_INDEX.search(done.stderr):
        pytest.skip("pip reaches no package index")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel, from a copy: a build leaves files behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignore = shutil.ignore_patterns("__pycache__", ".*", "data", "build", "dist", "*.egg-info", "tests")
    shutil.copytree(REPOSITORY, source, ignore=ignore)
    pip("wheel", "--no-deps", "--quiet", "--wheel-dir", folder, source, cwd=folder)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into an empty environment; return its command."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    pip("--python", folder / "bin" / "python", "install", "--quiet", "--only-binary=:all:", wheel, cwd=folder)
    return folder / "bin" / "visit-counter"


@pytest.fixture
def settings() -> dict[str, str]:
    """Return the settings of a service on free ports, whose data is where it is started."""
    return {"VISITS_EMBEDDED_PORTS": ",".join(map(str, free_ports(2)))}


class Service:
    """`visit-counter serve`, with its log in a directory."""

    def __init__(
        self, program: list[str], directory: Path, settings: dict[str, str], *, cwd: Path | None = None
    ) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self.log = directory / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*program, "serve", "-b", self.url.removeprefix("http://")],
                cwd=cwd or directory,
                env=plain_environ() | settings,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(lambda: self._is_ready() or self.process.poll() is not None, "the service answers")
        assert self.process.poll() is None, self.log.read_text()

    def _is_ready(self) -> bool:
        try:
            return bool(self.ask("GET", "/ready")["ready"])
        except OSError:
            return False

    def ask(self, method: str, path: str) -> Any:
        """Return what the service answers."""
        with urllib.request.urlopen(urllib.request.Request(self.url + path, method=method), timeout=20) as reply:
            return json.load(reply)

    def interrupt(self) -> int:
        """Press Ctrl-C: SIGINT to every process of the terminal's foreground group; return the exit status."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(60)

    def end(self) -> None:
        """End it if it still runs."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)


def test_the_wheel_has_the_service_and_its_files_and_nothing_of_the_tests(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    ours = REPOSITORY / "visit_counter"
    there = [path for path in ours.rglob("*") if path.suffix in (".py", ".lua", ".js", ".typed")]
    wanted = {path.relative_to(REPOSITORY).as_posix() for path in there}
    wanted |= {f"visit_counter/config/defaults/{path.name}" for path in (REPOSITORY / "config").glob("*.toml")}
    assert names == wanted


def test_an_installed_service_counts_on_after_ctrl_c(program: Path, settings: dict[str, str], tmp_path: Path) -> None:
    def command(*words: str) -> str:
        done = run(program, *words, cwd=tmp_path, **settings)
        assert done.returncode == 0, done.stderr
        return done.stdout

    installed = {path.name.partition("-")[0].lower() for path in program.parents[1].glob("lib/*/site-packages/*-info")}
    assert "flask" in installed
    assert not installed & {"pytest", "hypothesis", "coverage"}
    for visits in (1, 2):
        service = Service([str(program)], tmp_path, settings)
        try:
            assert service.ask("POST", "/visits/a")["visits"] == visits
            assert json.loads(command("visits", "get", "--json", "a"))[0]["visits"] == visits
            assert "redis_7071" in command("shards", "status")
            assert service.interrupt() == 0
        finally:
            service.end()
    assert json.loads(command("visits", "get", "--json", "a"))[0]["visits"] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"data", "log"}


@pytest.mark.parametrize("words", [("serve", "-w", "2"), ("visits", "get", "a")])
def test_wrong_settings_are_told_in_plain_lines(words: tuple[str, ...]) -> None:
    done = run(*PROGRAM, *words, cwd=REPOSITORY, VISITS_PROFILE="typo")
    assert done.returncode == 1
    assert done.stderr.startswith("visit-counter: wrong settings:\n  VISITS_PROFILE is 'typo'; allowed: ")
    assert "Traceback" not in done.stderr


def test_a_wrong_number_of_workers_is_one_line() -> None:
    done = run(*PROGRAM, "serve", cwd=REPOSITORY, WEB_CONCURRENCY="x")
    assert done.stderr == "visit-counter: WEB_CONCURRENCY is 'x'; allowed: a whole number of workers from 1\n"
    assert done.returncode == 1


def test_serve_passes_gunicorns_options_on_and_takes_no_application(tmp_path: Path) -> None:
    """An empty WEB_CONCURRENCY, as compose files give it, says nothing."""
    data = {"VISITS_DATA_DIR": str(tmp_path), "WEB_CONCURRENCY": ""}
    shown = run(*PROGRAM, "serve", "-w", "3", "--print-config", cwd=REPOSITORY, **data)
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"^workers +: 3$", shown.stdout, re.MULTILINE) or re.search(r"workers *= 3", shown.stdout)
    assert "visit_counter.server.worker.VisitWorker" in shown.stdout
    assert run(*PROGRAM, "serve", "--help", cwd=REPOSITORY).stdout.startswith("usage: visit-counter serve [OPTIONS]")
    refused = run(*PROGRAM, "serve", "wsgi:app", cwd=REPOSITORY)
    assert refused.returncode == 2
    assert "there is no wsgi:app to serve" in refused.stderr


def test_a_reload_and_a_second_master_keep_the_command(tmp_path: Path) -> None:
    """SIGHUP checks and reads the same configuration again; SIGUSR2 starts the same command again."""
    pid_file = tmp_path / "pid"
    settings = {"VISITS_PROFILE": "basic", "GUNICORN_CMD_ARGS": f"--pid {pid_file}"}
    service = Service(PROGRAM, tmp_path, settings, cwd=REPOSITORY)
    second = 0
    try:
        service.process.send_signal(signal.SIGHUP)
        wait_until(lambda: service.log.read_text().count("Booting worker") == 2, "a worker after the reload")
        service.process.send_signal(signal.SIGUSR2)
        wait_until((tmp_path / "pid.2").exists, "a second master")
        second = int((tmp_path / "pid.2").read_text())
        wait_until(lambda: service.log.read_text().count("Booting worker") == 3, "its worker")
        service.end()
        assert b"\0-m\0visit_counter\0serve\0" in Path(f"/proc/{second}/cmdline").read_bytes()
        assert service.ask("POST", "/visits/a")["visits"] == 1
    finally:
        service.end()
        if second:
            os.kill(second, signal.SIGTERM)
            wait_until(lambda: not processes.runs(second), "the second master ends")
    assert "Traceback" not in service.log.read_text()
