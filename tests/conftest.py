"""Fixtures that tests share."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from coverage import Coverage

from tests.support.progress import Progress, longest_first
from tests.support.servers import GunicornServer, ValkeyServer, running_valkeys
from visit_counter.config.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

QUICK_FOLDER = Path(__file__).parent / "unit"


def is_whole_suite(config: pytest.Config) -> bool:
    """Tell whether pytest was told neither which files nor which tests to run."""
    if (told := getattr(config, "workerinput", None)) is not None:
        return bool(told["is_whole_suite"])
    return config.args_source is pytest.Config.ArgsSource.TESTPATHS and not (
        config.option.keyword or config.option.markexpr or config.option.deselect or config.option.ignore
    )


def is_worker(config: pytest.Config) -> bool:
    """Tell whether this is one of the processes among which pytest-xdist divides the tests."""
    return hasattr(config, "workerinput")


def is_asked_for(config: pytest.Config, *options: str) -> bool:
    """Tell whether an option that begins so is on the command line, and not only in pyproject.toml."""
    return any(argument.startswith(options) for argument in config.invocation_params.args)


def measures_coverage(config: pytest.Config) -> bool:
    """Tell whether coverage is measured: a part of the suite covers a part, and a benchmark is not to be slowed."""
    if (told := getattr(config, "workerinput", None)) is not None:
        return bool(told["measures_coverage"])
    return is_whole_suite(config) or is_asked_for(config, "--cov")


def let_children_be_interrupted() -> None:
    """Give what the tests start the usual SIGINT, also where pytest is started with it ignored (nohup, some CI, `&`).

    A process inherits that a signal is ignored, but not that it is handled; pytest itself goes on ignoring it.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: None)


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Add what `tests.support.progress` and `test_fuzz` can be told."""
    parser.addoption("--fuzz", type=int, metavar="N", help="of test_fuzz: N requests to each worker, instead of a few")
    parser.addoption("--keep-durations", action="store_true", help="write what the tests took to tests/durations.json")
    if not pluginmanager.has_plugin("xdist"):
        # An environment older than this requirement, or `-p no:xdist`: the tests run one after the other.
        for option in ("--numprocesses", "--dist"):
            parser.addoption(option, help="of pytest-xdist, which is not there")
        parser.addoption("--no-loadscope-reorder", action="store_true", help="of pytest-xdist, which is not there")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run tests that are named in this process, where it can be looked into, unless processes are asked for.

    A mark names no tests: what `-m "not slow"` leaves is still most of them.
    """
    option = config.option
    names_tests = config.args_source is not pytest.Config.ArgsSource.TESTPATHS or option.keyword or option.deselect
    if names_tests and not is_asked_for(config, "-n", "--numprocesses"):
        option.numprocesses = 0


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker what it cannot see."""
    node.workerinput["is_whole_suite"] = is_whole_suite(node.config)
    node.workerinput["measures_coverage"] = measures_coverage(node.config)
    # It measures itself. With this it would also be measured as any child is, and once more than `uncovered` knows.
    os.environ.pop("COVERAGE_PROCESS_CONFIG", None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark as slow what needs servers, but for modules and tests that are marked as quick."""
    for item in items:
        if not item.path.is_relative_to(QUICK_FOLDER) and item.get_closest_marker("quick") is None:
            item.add_marker(pytest.mark.slow)
    if is_worker(config):
        # So that no long module begins when the other processes are about to end.
        items[:] = longest_first(items)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Show the progress, and measure coverage only where it is wanted.

    Last, because the reporter that shows the progress is there only then.
    pytest-cov has started by now, because of the `--cov` in pyproject.toml: only so does it see what is imported here.
    """
    let_children_be_interrupted()
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if isinstance(reporter, pytest.TerminalReporter):
        config.pluginmanager.register(Progress(reporter, keep=config.option.keep_durations), "progress")
    measuring = config.pluginmanager.get_plugin("_cov")
    if measuring is None:
        return
    if not measures_coverage(config):
        measuring.options.no_cov = True
    if is_worker(config) or not measures_coverage(config):
        # In a worker it begins anew with the session; what has begun already is the main process's, and never saved.
        if (coverage := Coverage.current()) is not None:
            coverage.stop()
        os.environ.pop("COVERAGE_PROCESS_CONFIG", None)


@pytest.fixture
def uncovered() -> Iterator[None]:
    """Measure no coverage meanwhile: tracing would be a part of the time that a test measures."""
    coverage = Coverage.current()
    if coverage is not None:
        coverage.stop()
    # In a process of pytest-xdist it is measured twice: once because the process was started by one that is measured.
    trace = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(trace)
    if coverage is not None:
        coverage.start()


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyServer]:
    """One running Valkey server."""
    with running_valkeys(tmp_path / "valkey") as (server,):
        yield server


@pytest.fixture
def two_valkeys(tmp_path: Path) -> Iterator[tuple[ValkeyServer, ValkeyServer]]:
    """Two running Valkey servers."""
    with running_valkeys(tmp_path / "valkey_1", tmp_path / "valkey_2") as (first, second):
        yield first, second


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Settings]:
    """Make settings from VISITS_* values: `settings(VISITS_PROFILE="basic")`; the data is in the test's directory."""

    def make(**environ: str) -> Settings:
        return Settings.load({"VISITS_DATA_DIR": str(tmp_path / "data")} | environ)

    return make


@pytest.fixture
def gunicorn(tmp_path: Path) -> Iterator[Callable[..., GunicornServer]]:
    """Make services, not yet started, that end with the test: `gunicorn("-w", "1", VISITS_PROFILE="basic").start()`."""
    servers: list[GunicornServer] = []

    def make(*arguments: str, port: int = 0, **environ: str) -> GunicornServer:
        servers.append(GunicornServer(tmp_path / f"gunicorn_{len(servers)}", *arguments, port=port, **environ))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()
