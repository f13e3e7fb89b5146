"""The whole cost of a visit, against its goals: `python -m tests.performance.life [--short] [--only NAME] [--list]`.

The service with its shards and its flush has one core, and so has each system it is compared with; the load has
another. Systems take turns, each started for its turn; figures are medians. wrk, webdis and nginx must be installed for
the rows that use them. Prints a table line by line; the exit status is 1 if a goal is not reached. All of it takes some
seventy minutes; `--short` a minute or two, which shows that it works and nothing more.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.performance import wrk
from tests.performance.life import flush_rows, memory_rows, pause_rows, request_rows
from tests.performance.life.bench import SHORT, Bench, Effort, Line

if TYPE_CHECKING:
    from collections.abc import Callable


class Row(NamedTuple):
    """What is measured together: its name, the function, and the programs that it needs."""

    name: str
    function: Callable[[Bench], list[Line]]
    needs: tuple[str, ...] = ()

    @property
    def missing(self) -> str:
        """Why this row cannot be measured here, or nothing."""
        absent = [program for program in self.needs if shutil.which(program) is None]
        if absent:
            return f"not installed: {', '.join(absent)}"
        return "" if len(os.sched_getaffinity(0)) > 1 else "it takes two cores"


ROWS = (
    Row("visitors", request_rows.visitors, ("wrk", "webdis")),
    Row("zipf", request_rows.zipf, ("wrk", "webdis")),
    Row("closing", request_rows.closing, ("wrk", "webdis")),
    Row("life", request_rows.whole_life, ("wrk", "webdis")),
    Row("floor", request_rows.floor, ("wrk", "nginx")),
    Row("pauses", pause_rows.pauses, ("wrk",)),
    Row("killed", pause_rows.killed_worker, ("wrk",)),
    Row("popular", flush_rows.popular, ("wrk",)),
    Row("distinct", flush_rows.distinct),
    Row("replay", flush_rows.replay),
    Row("first", request_rows.first_visits, ("wrk", "webdis")),
    Row("divided", request_rows.divided, ("wrk",)),
    Row("idle", memory_rows.idle),
    Row("worker", memory_rows.worker),
    Row("gaps", pause_rows.gaps),
    Row("start", pause_rows.start),
)


def measure(row: Row, effort: Effort) -> list[Line]:
    """Measure one row, with this process on the core of the load."""
    if row.missing:
        return [Line(row.name, row.missing, "", None)]
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(effort, Path(name))
        with wrk.pinned(bench.load_core):
            return row.function(bench)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="list the rows")
    parser.add_argument("--only", action="append", metavar="NAME", help="only this row; may be repeated")
    parser.add_argument("--short", action="store_true", help="show that it works; the figures mean little")
    parser.add_argument("--turns", type=int, help="turns of each system, in place of three")
    parser.add_argument("--minutes", type=float, help="of mixed load in the row `pauses`, in place of twenty")
    options = parser.parse_args()
    chosen = [row for row in ROWS if not options.only or row.name in options.only]
    if options.only and len(chosen) != len(set(options.only)):
        parser.error(f"rows are: {', '.join(row.name for row in ROWS)}")
    if options.list:
        for row in chosen:
            print(f"{row.name:10} {(row.function.__doc__ or '').partition(chr(10))[0]} {row.missing}")
        return 0
    # With this variable every process compiles the service anew: half as long again to the start, and 5 MB more for a
    # process.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    effort = SHORT if options.short else Effort()
    effort = effort._replace(turns=options.turns or effort.turns)
    effort = effort._replace(pause=options.minutes * 60 if options.minutes else effort.pause)
    print("| figure | measured | goal | reached |\n|---|---|---|---|", flush=True)
    all_reached = True
    for row in chosen:
        lines = measure(row, effort)
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")
        for line in lines:
            all_reached = all_reached and line.reached is True
            reached = "-" if line.reached is None else "yes" if line.reached else "no"
            print(f"| {line.figure} | {line.measured} | {line.goal} | {reached} |", flush=True)
    return 0 if all_reached else 1


if __name__ == "__main__":
    sys.exit(main())
