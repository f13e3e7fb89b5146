"""The fault campaign: `python -m tests.faults`. docs/reliability.md says what it does and what it found.

python -m tests.faults                       every row, with its number of trials
python -m tests.faults --list                the rows
python -m tests.faults --only simulation --trials 1000 --seed 7
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.faults import (
    embedded_rows,
    failover_rows,
    flush_rows,
    http_rows,
    journal_rows,
    knowledge_rows,
    local_rows,
    rebalancing,
    rows,
    shard_rows,
    shards,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class Row(NamedTuple):
    """A fault, how often it is tried, and the function that tries it: directory, trials, seed, progress -> detail."""

    name: str
    trials: int
    function: Callable[[Path, int, int, Callable[[int], None]], str]


ROWS = (
    Row("worker-kill", 1000, rows.kill_worker),
    *(Row(f"step-{step}", 100, rows.kill_at_step(step)) for step in rows.STEPS),
    Row("master-kill", 100, rows.kill_master),
    Row("shard-kill-everysec", 200, rows.kill_shard("everysec")),
    Row("shard-kill-always", 200, rows.kill_shard("always")),
    Row("lost-replies", 2000, local_rows.lose_replies),
    Row("worker-stop", 100, rows.freeze_worker),
    Row("shard-stop", 100, rows.freeze_shard),
    Row("flush-refused", 60, flush_rows.refuse),
    Row("flush-hang", 40, flush_rows.hang),
    Row("written-into", 60, flush_rows.write_into),
    Row("replica-promoted", 50, flush_rows.promote_replica),
    Row("shard-hang", 200, shards.hang),
    Row("shard-die", 200, shards.die),
    Row("shard-restart", 200, shards.restart),
    Row("journal-damage", 40, local_rows.damage_journal),
    Row("disk-full", 50, rows.full_disk),
    Row("clock", 20, rows.set_clock),
    Row("rollback", 100, rows.roll_back),
    Row("two-hosts", 30, knowledge_rows.share_shards),
    Row("outage-known", 30, knowledge_rows.take_shard_away),
    Row("copied-data", 30, knowledge_rows.copy_data),
    Row("older-shard", 30, knowledge_rows.go_back),
    Row("slow-clients", 80, http_rows.slow_clients),
    Row("stop", 100, http_rows.stop_in_the_middle),
    Row("wrong-reload", 50, http_rows.reload_wrongly),
    Row("cluster-primary-kill", 50, failover_rows.kill_cluster_primary),
    Row("cluster-slots-move", 50, failover_rows.move_cluster_slots),
    Row("sentinel-failover", 20, failover_rows.kill_watched_primary),
    Row("cluster-slots-watched", 50, shard_rows.watch_cluster_slots),
    Row("shard-garbage", 200, shard_rows.answer_garbage),
    Row("shard-swapped", 100, shard_rows.swap_addresses),
    Row("name-server-hangs", 100, shard_rows.hang_name_server),
    Row("rebalance", 50, rebalancing.row(rebalancing.under_load)),
    Row("rebalance-kill", 50, rebalancing.row(rebalancing.killed)),
    Row("supervisor-kill", 100, embedded_rows.kill_supervisor),
    Row("ports-change", 50, embedded_rows.change_ports),
    Row("shards-removed", 50, embedded_rows.remove_files),
    Row("sync-fails-everysec", 50, journal_rows.sync_fails_everysec),
    Row("sync-fails-always", 50, journal_rows.sync_fails_always),
    Row("sync-fails-gthread", 20, journal_rows.sync_fails_gthread),
    Row("write-fails", 50, journal_rows.write_fails),
    Row("write-fails-gthread", 20, journal_rows.write_fails_gthread),
    Row("segment-removed", 50, journal_rows.segment_removed),
    Row("directory-removed", 50, journal_rows.directory_removed),
    Row("directory-removed-gthread", 20, journal_rows.directory_removed_gthread),
    Row("segment-cut", 50, journal_rows.segment_cut),
    Row("segment-cut-gthread", 20, journal_rows.segment_cut_gthread),
    Row("simulation", 100_000, local_rows.simulate),
)


def run(row: Row, trials: int, seed: int) -> bool:
    """Run one row and print its line of the table; tell whether every promise held."""
    started = time.monotonic()
    shown = 0.0
    done = 0

    def progress(trial: int) -> None:
        nonlocal shown, done
        done = trial
        if time.monotonic() - shown > 1 and sys.stderr.isatty():
            shown = time.monotonic()
            sys.stderr.write(f"\r{row.name}: {trial} of {trials}, {shown - started:.0f} s ")

    result, detail = "held", ""
    with tempfile.TemporaryDirectory() as directory:
        try:
            detail = row.function(Path(directory) / row.name, trials, seed, progress)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever broke is the finding
            result, detail = "BROKEN", f"{type(error).__name__}: {error}"
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
    what = (row.function.__doc__ or "").partition("\n")[0].rstrip(".")
    print(f"| {what} | `{row.name}` | {done} | {time.monotonic() - started:.0f} | {result} | {detail} |", flush=True)
    return result == "held"


def main() -> int:
    """Run the command line; the exit status is 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description="The fault campaign; see docs/reliability.md.")
    parser.add_argument("--list", action="store_true", help="list the rows")
    parser.add_argument("--only", action="append", metavar="NAME", help="only this row; may be repeated")
    parser.add_argument("--trials", type=int, help="another number of trials for every row")
    parser.add_argument("--scale", type=float, default=1.0, help="a share of each row's trials, e.g. 0.1")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chosen = [row for row in ROWS if not options.only or row.name in options.only]
    if options.only and len(chosen) != len(set(options.only)):
        parser.error(f"rows are: {', '.join(row.name for row in ROWS)}")
    if options.list:
        for row in chosen:
            print(f"{row.name:20} {row.trials:7}  {(row.function.__doc__ or '').partition(chr(10))[0]}")
        return 0
    print(
        f"seed {options.seed}\n\n| fault | row | trials | seconds | promises | |\n|---|---|--:|--:|---|---|", flush=True
    )
    held = [run(row, options.trials or max(1, round(row.trials * options.scale)), options.seed) for row in chosen]
    print(f"\n{sum(held)} of {len(held)} rows held")
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
