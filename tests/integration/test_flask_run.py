"""The service under a server that knows nothing of it: `flask run`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.support.ports import free_ports, listening
from tests.support.servers import DEADLINE_SECONDS, REPOSITORY, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def visits(port: int, method: str) -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/visits/a", method=method)
    with urllib.request.urlopen(request, timeout=DEADLINE_SECONDS) as response:
        return int(json.load(response)["visits"])


@contextmanager
def flask_run(port: int, shards: list[int], directory: Path) -> Iterator[Path]:
    """Run `flask run` until the end of the block, then end it with Ctrl-C; give its log."""
    log = directory / "flask.log"
    environ = {
        **os.environ,
        "VISITS_DATA_DIR": str(directory / "data"),
        "VISITS_EMBEDDED_PORTS": ",".join(map(str, shards)),
    }
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "flask", "run", "-p", str(port)],
            cwd=REPOSITORY,
            env=environ,
            stdout=file,
            stderr=file,
        )
    try:
        wait_until(lambda: listening(port), "flask run listens")
        yield log
        process.send_signal(signal.SIGINT)
        process.wait(DEADLINE_SECONDS)
    finally:
        process.kill()
        process.wait()


def test_flask_run_brings_its_shards_and_leaves_nothing_but_the_counts(tmp_path: Path) -> None:
    port, *shards = free_ports(3)
    with flask_run(port, shards, tmp_path):
        assert [visits(port, "POST"), visits(port, "POST")] == [1, 2]
    assert not any(listening(shard) for shard in shards)
    with flask_run(port, shards, tmp_path) as log:
        assert visits(port, "GET") == 2
    assert "Traceback" not in log.read_text()
    # The last flush of the first run brought both visits into their shard.
    assert [line for line in (tmp_path / "data" / "journal" / "state.json").read_text().split() if '"floor":1' in line]


def test_the_suite_can_be_started_where_ctrl_c_is_ignored() -> None:
    """In the background of a script, for one; the test it runs ends a service by Ctrl-C."""
    test = f"{__file__}::{test_flask_run_brings_its_shards_and_leaves_nothing_but_the_counts.__name__}"
    command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-m", "pytest", "-q", "--no-cov", test]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
