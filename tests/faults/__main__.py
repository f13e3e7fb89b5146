"""The fault campaign: `python -m tests.faults`. docs/reliability.md says what it does and what it found.

python -m tests.faults                       every row, with its number of trials, four rows at a time
python -m tests.faults --lanes 1             one row at a time
python -m tests.faults --list                the rows
python -m tests.faults --only simulation --trials 1000 --seed 7
"""

from __future__ import annotations

import argparse
import sys

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
from tests.faults.lanes import Campaign, Row

ROWS = (
    Row("worker-kill", 1000, 135, rows.kill_worker),
    *(Row(f"step-{step}", 100, 13, rows.kill_at_step(step)) for step in rows.STEPS),
    Row("master-kill", 100, 193, rows.kill_master),
    Row("shard-kill-everysec", 200, 52, rows.kill_shard("everysec")),
    Row("shard-kill-always", 200, 52, rows.kill_shard("always")),
    Row("lost-replies", 2000, 210, local_rows.lose_replies),
    Row("worker-stop", 100, 22, rows.freeze_worker),
    Row("shard-stop", 100, 68, rows.freeze_shard),
    Row("flush-refused", 60, 30, flush_rows.refuse),
    Row("flush-hang", 40, 60, flush_rows.hang),
    Row("written-into", 60, 30, flush_rows.write_into),
    Row("replica-promoted", 50, 150, flush_rows.promote_replica),
    Row("shard-hang", 200, 100, shards.hang),
    Row("shard-die", 200, 100, shards.die),
    Row("shard-restart", 200, 150, shards.restart),
    Row("journal-damage", 40, 24, local_rows.damage_journal),
    Row("disk-full", 50, 11, rows.full_disk),
    Row("clock", 20, 8, rows.set_clock),
    Row("rollback", 100, 53, rows.roll_back),
    Row("two-hosts", 30, 60, knowledge_rows.share_shards),
    Row("outage-known", 30, 60, knowledge_rows.take_shard_away),
    Row("copied-data", 30, 60, knowledge_rows.copy_data),
    Row("older-shard", 30, 60, knowledge_rows.go_back),
    Row("slow-clients", 80, 14, http_rows.slow_clients),
    Row("stop", 100, 240, http_rows.stop_in_the_middle),
    Row("wrong-reload", 50, 280, http_rows.reload_wrongly),
    Row("cluster-primary-kill", 50, 200, failover_rows.kill_cluster_primary),
    Row("cluster-slots-move", 50, 100, failover_rows.move_cluster_slots),
    Row("sentinel-failover", 20, 100, failover_rows.kill_watched_primary),
    Row("cluster-slots-watched", 50, 100, shard_rows.watch_cluster_slots),
    Row("shard-garbage", 200, 60, shard_rows.answer_garbage),
    Row("shard-swapped", 100, 60, shard_rows.swap_addresses),
    Row("name-server-hangs", 100, 60, shard_rows.hang_name_server),
    Row("rebalance", 50, 200, rebalancing.row(rebalancing.under_load)),
    Row("rebalance-kill", 50, 200, rebalancing.row(rebalancing.killed)),
    Row("supervisor-kill", 100, 200, embedded_rows.kill_supervisor),
    Row("ports-change", 50, 200, embedded_rows.change_ports),
    Row("shards-removed", 50, 200, embedded_rows.remove_files),
    Row("sync-fails-everysec", 50, 112, journal_rows.sync_fails_everysec),
    Row("sync-fails-always", 50, 77, journal_rows.sync_fails_always),
    Row("sync-fails-gthread", 20, 29, journal_rows.sync_fails_gthread),
    Row("write-fails", 50, 38, journal_rows.write_fails),
    Row("write-fails-gthread", 20, 15, journal_rows.write_fails_gthread),
    Row("segment-removed", 50, 87, journal_rows.segment_removed),
    Row("directory-removed", 50, 90, journal_rows.directory_removed),
    Row("directory-removed-gthread", 20, 40, journal_rows.directory_removed_gthread),
    Row("segment-cut", 50, 213, journal_rows.segment_cut),
    Row("segment-cut-gthread", 20, 70, journal_rows.segment_cut_gthread),
    Row("simulation", 100_000, 1700, local_rows.simulate),
)


def main() -> int:
    """Run the command line; the exit status is 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description="The fault campaign; see docs/reliability.md.")
    parser.add_argument("--list", action="store_true", help="list the rows")
    parser.add_argument("--only", action="append", metavar="NAME", help="only this row; may be repeated")
    parser.add_argument("--trials", type=int, help="another number of trials for every row")
    parser.add_argument("--scale", type=float, default=1.0, help="a share of each row's trials, e.g. 0.1")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lanes", type=int, default=4, help="rows side by side; most of their time is waiting (4)")
    options = parser.parse_args()
    chosen = [row for row in ROWS if not options.only or row.name in options.only]
    if options.only and len(chosen) != len(set(options.only)):
        parser.error(f"rows are: {', '.join(row.name for row in ROWS)}")
    if options.list:
        for row in chosen:
            print(f"{row.name:25} {row.trials:7}  {row.what}")
        return 0
    trials = [options.trials or max(1, round(row.trials * options.scale)) for row in chosen]
    held = Campaign(list(zip(chosen, trials, strict=True)), options.seed).run(options.lanes)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
