"""The checks before the first worker starts."""

from __future__ import annotations

import gc
import os
from types import SimpleNamespace

import pytest

from visit_counter.config.settings import Settings
from visit_counter.errors import StartupError
from visit_counter.server import startup


@pytest.mark.parametrize(
    ("profile", "environ", "workers"),
    [
        ("sharded", {}, 2),
        ("redis", {}, 2),
        ("basic", {}, 1),
        ("cached", {"WEB_CONCURRENCY": ""}, 1),
        ("sharded", {"WEB_CONCURRENCY": "5"}, 5),
        ("basic", {"WEB_CONCURRENCY": "5"}, 5),
    ],
)
def test_the_number_of_workers_is_the_profiles_unless_the_environment_says_it(
    profile: str, environ: dict[str, str], workers: int
) -> None:
    assert startup.worker_count(Settings.load({"VISITS_PROFILE": profile}), environ) == workers


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
def test_a_wrong_number_of_workers_is_told(text: str) -> None:
    with pytest.raises(StartupError, match=r"WEB_CONCURRENCY is .*; allowed: a whole number of workers from 1"):
        startup.worker_count(Settings.load({}), {"WEB_CONCURRENCY": text})


def test_a_unix_socket_is_left_to_gunicorn() -> None:
    startup.check_address_is_free("/run/visits.sock")


def test_an_address_of_another_machine_cannot_be_had() -> None:
    with pytest.raises(StartupError, match=r"the address 192.0.2.1:0 cannot be had: .*; choose another one with -b"):
        startup.check_address_is_free(("192.0.2.1", 0))


def test_the_start_log_of_a_profile_without_shards_is_one_line() -> None:
    settings = Settings.load({"VISITS_PROFILE": "basic"})
    assert startup.start_log(settings, [("127.0.0.1", 8000), "unix:/x"]) == [
        "Visit Counter at http://127.0.0.1:8000, unix:/x, profile basic"
    ]


def test_a_failed_start_is_one_line_and_an_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^1$"), startup.errors_in_one_line():
        raise StartupError("the reason")
    assert capsys.readouterr().err == "visit-counter: the reason\n"


def test_ctrl_c_during_the_start_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^130$"), startup.errors_in_one_line():
        raise KeyboardInterrupt
    assert capsys.readouterr().err == ""


def test_a_worker_that_loaded_no_app_has_nothing_to_stop() -> None:
    startup.stop_service(None)


def test_without_epoll_the_stock_workers_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    assert startup.worker_class() == "visit_counter.server.worker.VisitWorker"
    monkeypatch.delattr("select.epoll")
    assert startup.worker_class() == "gthread"


def test_what_a_worker_has_when_it_has_started_is_not_collected_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps: list[str] = []
    service = SimpleNamespace(start=lambda: steps.append("start"))
    monkeypatch.setattr(gc, "freeze", lambda: steps.append("freeze"))
    app = SimpleNamespace(extensions={"visit_counter": service})
    startup.start_service(SimpleNamespace(wsgi=app, alive=True, ppid=os.getppid()))
    assert steps == ["start", "freeze"]
