"""Runs rows of the campaign side by side, each in a process of its own with its own directory, and says how far it is.

The table comes once, at the end, in the order of the rows; until then a line tells of each row that has ended, and one
now and then of those that run. A row that ends its process is broken; the others go on.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.support.progress import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.context import SpawnProcess

# How often it is said what runs, in seconds: on a terminal, and where the output is kept.
_TERMINAL_SECONDS, _LOG_SECONDS = 1.0, 30.0
# A row tells of its trials at most this often.
_TELL_SECONDS = 0.2


class Row(NamedTuple):
    """A fault, how often it is tried, and the function that tries it: directory, trials, seed, progress -> detail.

    `seconds` is about what all the trials take on two cores that have little else to do: the longest rows begin first,
    and the time left is told by it.
    """

    name: str
    trials: int
    seconds: float
    function: Callable[[Path, int, int, Callable[[int], None]], str]

    @property
    def what(self) -> str:
        """Return the fault in words."""
        return (self.function.__doc__ or "").partition("\n")[0].rstrip(".")


class Result(NamedTuple):
    """What came of a row: `error` is empty where every promise held."""

    detail: str
    error: str


@dataclass
class Run:
    """A row that runs or has run."""

    row: Row
    trials: int
    process: SpawnProcess
    reports: Connection
    started: float = field(default_factory=time.monotonic)
    done: int = 0
    seconds: float = 0.0
    result: Result | None = None

    def line(self) -> str:
        """Return its line of the table."""
        assert self.result, "it still runs"
        said = f"BROKEN | {self.result.error}" if self.result.error else f"held | {self.result.detail}"
        return f"| {self.row.what} | `{self.row.name}` | {self.done} | {self.seconds:.0f} | {said} |"


class Campaign:
    """Rows of a table and their numbers of trials, and what has come of them so far.

    `table` is the module whose `ROWS` they are: their processes look for them there.
    """

    def __init__(self, rows: Sequence[tuple[Row, int]], seed: int, table: str = "tests.faults.__main__") -> None:
        self._waiting = sorted(rows, key=lambda each: _seconds(*each), reverse=True)
        self._order = [row.name for row, _ in rows]
        self._seed, self._table = seed, table
        self._all_seconds = sum(_seconds(*each) for each in rows)
        self._started = time.monotonic()
        self.running: list[Run] = []
        self.ended: list[Run] = []

    def run(self, lanes: int) -> bool:
        """Run every row, so many at a time; print the table; tell whether every promise held."""
        every = _TERMINAL_SECONDS if sys.stderr.isatty() else _LOG_SECONDS
        told = time.monotonic()
        try:
            while self._waiting or self.running:
                while self._waiting and len(self.running) < lanes:
                    self.running.append(self._begin(*self._waiting.pop(0)))
                for reports in wait([run.reports for run in self.running], timeout=every):
                    self._hear(next(run for run in self.running if run.reports is reports))
                if time.monotonic() - told >= every:
                    told = time.monotonic()
                    _say(self.state(), lasting=not sys.stderr.isatty())
        finally:
            # A row that is interrupted ends what it has started.
            for run in self.running:
                run.process.join()
            self._print()
        return not any(run.result is None or run.result.error for run in self.ended)

    def _begin(self, row: Row, trials: int) -> Run:
        spawn = multiprocessing.get_context("spawn")
        reports, told = spawn.Pipe(duplex=False)
        process = spawn.Process(target=_run, args=(self._table, row.name, trials, self._seed, told), name=row.name)
        process.start()
        told.close()
        return Run(row, trials, process, reports)

    def _hear(self, run: Run) -> None:
        """Take one report of a row."""
        try:
            report = run.reports.recv()
        except EOFError:
            run.process.join()
            report = Result("", f"its process ended with status {run.process.exitcode}")
        if isinstance(report, int):
            run.done = report
            return
        run.result, run.seconds = report, time.monotonic() - run.started
        run.process.join()
        run.reports.close()
        self.running.remove(run)
        self.ended.append(run)
        said = f"BROKEN: {report.error}" if report.error else f"held: {report.detail}"
        _say(f"{run.row.name}: {run.done} trials in {shown(run.seconds)}, {said}", lasting=True)

    def state(self) -> str:
        """Say how many rows have ended, which run, and how long it will take, by what has been done so far."""
        rows = len(self._order)
        done = sum(_seconds(run.row, run.trials) for run in self.ended)
        done += sum(_seconds(run.row, run.trials) * run.done / run.trials for run in self.running)
        left = (time.monotonic() - self._started) * (self._all_seconds - done) / done if done else 0.0
        running = ", ".join(f"{run.row.name} {run.done} of {run.trials}" for run in self.running)
        return f"{len(self.ended)} of {rows} rows, about {shown(left)} left; {running}"

    def _print(self) -> None:
        print(f"\nseed {self._seed}\n\n| fault | row | trials | seconds | promises | |\n|---|---|--:|--:|---|---|")
        for run in sorted(self.ended, key=lambda run: self._order.index(run.row.name)):
            print(run.line())
        held = sum(not run.result.error for run in self.ended if run.result)
        print(f"\n{held} of {len(self._order)} rows held, {shown(time.monotonic() - self._started)}", flush=True)


def _seconds(row: Row, trials: int) -> float:
    return row.seconds * trials / row.trials


def _say(text: str, *, lasting: bool) -> None:
    """Write a line to the terminal; one that is not lasting is written over by the next."""
    clear = "\r\x1b[K" if sys.stderr.isatty() else ""
    sys.stderr.write(f"{clear}{text}{chr(10) if lasting else ''}")
    sys.stderr.flush()


def _run(table: str, name: str, trials: int, seed: int, reports: Connection) -> None:
    """Run one row in this process, and report its trials and then its result."""
    row = next(row for row in import_module(table).ROWS if row.name == name)
    told = 0.0

    def progress(trial: int) -> None:
        nonlocal told
        if trial >= trials or time.monotonic() - told > _TELL_SECONDS:
            told = time.monotonic()
            reports.send(trial)

    with tempfile.TemporaryDirectory() as directory:
        try:
            result = Result(row.function(Path(directory) / name, trials, seed, progress), "")
        except BaseException as error:  # noqa: BLE001 - whatever broke is the finding
            result = Result("", f"{type(error).__name__}: {error}")
    reports.send(result)
