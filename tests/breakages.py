"""Deliberate breakages: `python -m tests.breakages`. Each must make its named test fail (docs/reliability.md).

A breakage is one replacement in a temporary copy of the project. The tests that hold the promise then run there.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
SIMULATION = "tests/integration/test_faults_simulation.py"
EMBEDDED = "tests/integration/test_embedded.py"
LOCAL = "tests/integration/test_faults_local.py"


class Breakage(NamedTuple):
    """What is broken, where, how, and the test that must fail."""

    name: str
    file: str
    search: str
    replace: str
    test: str

    def found(self) -> int:
        """Return how many times the text to replace is in the file: more or less than once, and the row is stale."""
        path = REPOSITORY / "visit_counter" / self.file
        return path.read_text(encoding="utf-8").count(self.search) if path.exists() else 0


BREAKAGES = (
    Breakage(
        "drop the watermark check in the script",
        "shards/redis/apply.lua",
        "if present ~= expected then return present end",
        "",
        "tests/integration/test_store_contract.py",
    ),
    Breakage(
        "believe a shard's word about its disk without a write that it vouches for",
        "flush/round.py",
        "marks = {name: self.store.one_per_server_of(name, partitions) for name, partitions in mine.items()}",
        "marks: dict[str, list[int]] = {name: [] for name in mine}",
        "tests/unit/flush/test_flusher.py::test_a_shard_is_asked_about_its_disk_once_something_was_written_to_it_in_the_same_flush",
    ),
    Breakage(
        "make another journal while a living process knows the one that is gone",
        "journal/witnesses.py",
        """            begin = self._lock(fcntl.LOCK_EX)
""",
        """            begin = True
""",
        "tests/unit/journal/test_witnesses.py",
    ),
    Breakage(
        "forget segments before every partition includes them",
        "flush/flusher.py",
        "if segment.last <= state.floor]",
        "]",
        SIMULATION,
    ),
    Breakage(
        "clear what is pending before it is applied",
        "flush/round.py",
        "                if behind:\n                    break\n",
        "                del behind\n",
        SIMULATION,
    ),
    Breakage(
        "read a count without looking at the end of the journal",
        "counting/counter.py",
        "            buffer.catch_up()\n            loads",
        "            loads",
        SIMULATION,
    ),
    Breakage(
        "keep what was read from the other workers",
        "counting/stored.py",
        "        reported = not changed or self.buffer.report(changed)\n",
        "        reported = True\n        for page, known in changed:\n            self._hear(page, known)\n",
        "tests/unit/counting/test_stored.py",
    ),
    Breakage(
        "believe a read that says less than what is known",
        "counting/judging.py",
        "return mine if mine_is_later else other",
        "return other",
        "tests/unit/counting/test_stored.py",
    ),
    Breakage(
        "take a copied journal's watermark for our own",
        "counting/judging.py",
        "return token is not None and token != watermark",
        "return False",
        "tests/unit/counting/test_stored.py",
    ),
    Breakage(
        "read under the old id after a flush has sent under a new one",
        "counting/stored.py",
        "if self.buffer.is_renamed():",
        "if False:",
        "tests/unit/counting/test_stored.py",
    ),
    Breakage(
        "answer without a removed segment that others know",
        "counting/counter.py",
        "if buffer.absent:",
        "if False:",
        "tests/unit/journal/test_repair.py",
    ),
    Breakage(
        "lose with a cut file what it said of stored counts",
        "journal/repair.py",
        "                self._report_again()\n",
        "",
        "tests/unit/counting/test_stored.py",
    ),
    Breakage(
        "tell nobody that visits are lost for good",
        "flush/round.py",
        "        self._report_losses(plan)\n",
        "",
        "tests/unit/counting/test_stored.py",
    ),
    Breakage(
        "leave no trace of another writer under a second apply of our own",
        "shards/redis/apply.lua",
        "if string.sub(latest, 1, #me) ~= me then others = latest end",
        "others = latest",
        "tests/integration/test_store_contract.py",
    ),
    Breakage(
        "take a page for fresh whatever others have changed",
        "counting/freshness.py",
        "!= (seen.change, seen.losses):",
        "!= (others_change(look.stamp, writer), seen.losses):",
        SIMULATION + "::test_no_cached_count_that_a_look_finds_fresh_is_wrong",
    ),
    Breakage(
        "take a page for fresh after visits were lost for good",
        "counting/freshness.py",
        "!= (seen.change, seen.losses):",
        "!= (seen.change, look.losses):",
        "tests/unit/counting/test_freshness.py",
    ),
    Breakage(
        "take for our own what a copy of this journal has changed",
        "counting/freshness.py",
        "if look.watermark != seen.watermark and not is_ours:",
        "if False:",
        "tests/unit/counting/test_freshness.py",
    ),
    Breakage(
        "call a read fresh since it was taken over, and not since it was asked for",
        "counting/stored.py",
        "            writer, asked_at = self.buffer.writer, self.kept.cache.clock()\n            stored",
        "            writer, asked_at = self.buffer.writer, self.kept.cache.clock() + 5\n            stored",
        "tests/unit/counting/test_freshness.py",
    ),
    Breakage(
        "try a visit again of which nobody knows whether it is in the journal",
        "counting/counter.py",
        "outcomes.append(refusal)",
        "outcomes.append(None)",
        "tests/unit/counting/test_counter.py",
    ),
    Breakage(
        "count a visit that lies behind a seal",
        "journal/buffer.py",
        "if end - written == self.offset or not self._replay_others(end - written):\n",
        "if end - written == self.offset or self._replay_others(end - written) in (True, False):\n",
        "tests/unit/journal/test_buffer.py",
    ),
    Breakage(
        "take a watermark that no flush wrote for none",
        "flush/unsound.py",
        "number = segment_of(state.confirmed.get(partition, NO_WATERMARK))",
        "number = 0",
        "tests/unit/flush/test_unsound.py",
    ),
    Breakage(
        "keep as a boundary what a shard has surely refused",
        "flush/round.py",
        "            self.state.attempted[owner].remove(number)\n",
        "",
        "tests/unit/flush/test_unsound.py",
    ),
    Breakage(
        "add to a count that is no number",
        "shards/redis/apply.lua",
        "if not sound then\n      held",
        "if false then\n      held",
        "tests/integration/test_redis_store.py",
    ),
    Breakage(
        "count no replica that is away",
        "shards/redis/replicas.py",
        "return [name for name in away if not self._known[name].given_up]",
        "return []",
        "tests/integration/test_faults_flush.py::test_a_replica_that_hung_and_is_promoted_later_lacks_nothing",
    ),
    Breakage(
        "make a forgotten segment again",
        "journal/directory.py",
        "os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)",
        "os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_CREAT, 0o600)",
        SIMULATION,
    ),
    Breakage(
        "take a visit for counted of which the disk took a part",
        "journal/buffer.py",
        "            if written < 0:\n                break\n",
        "",
        SIMULATION,
    ),
    Breakage(
        "acknowledge before the disk has it, with fsync always",
        "journal/buffer.py",
        "        if self._always_sync:\n            self._sync_appended()\n        else:",
        "        if True:",
        SIMULATION,
    ),
    Breakage(
        "skip the comparison with what was confirmed, so that nothing is sent again",
        "flush/comparing.py",
        "        if have < had:\n            # What it",
        "        if False:\n            # What it",
        SIMULATION,
    ),
    Breakage(
        "merge segments across a watermark that a shard may have",
        "flush/compaction.py",
        "if segment.last in boundaries or segment is waiting[-1]:",
        "if segment is waiting[-1]:",
        SIMULATION,
    ),
    Breakage(
        "accept visits while the journal is in doubt",
        "journal/buffer.py",
        "        self.halted, self._bound = reason, -1\n",
        "        self.halted = reason\n",
        "tests/unit/journal/test_repair.py",
    ),
    Breakage(
        "go on appending to a segment that was removed",
        "journal/repair.py",
        "        elif is_file_at(buffer.descriptor, self._journal.path / segment.name):\n",
        "        elif True:\n",
        "tests/unit/journal/test_repair.py",
    ),
    Breakage(
        "send a segment whose sync has failed before it is written anew",
        "flush/sealed.py",
        "if segment in doubtful or not self.journal.is_whole(replay):",
        "if False:",
        "tests/unit/journal/test_repair.py",
    ),
    Breakage(
        "flush from memory what the file may not say",
        "journal/buffer.py",
        "not self.journal.is_sealed_at(segment, table.token, table.seal_at)",
        "False",
        "tests/unit/flush/test_followed.py",
    ),
    Breakage(
        "flush from memory while something is about to be mended",
        "journal/buffer.py",
        "if self.halted or self.mending.doubtful or table is None",
        "if table is None",
        "tests/unit/flush/test_followed.py",
    ),
    Breakage(
        "let a flush wait for its own lock",
        "journal/buffer.py",
        "            with self.mending.no_lock_needed(), suppress(JournalError):",
        "            with suppress(JournalError):",
        "tests/unit/flush/test_followed.py",
    ),
    Breakage(
        "read lines without their checksum",
        "journal/records.py",
        'claimed != crc32(b"%b\\t%b" % (kind, argument))',
        "claimed < 0",
        f"{LOCAL}::test_damage_at_any_offset_loses_one_line_at_most",
    ),
    Breakage(
        "forget the names of the embedded shards",
        "config/embedded_files.py",
        "names: list[str | None] = [*recorded[: len(ports)]]",
        "names: list[str | None] = []",
        "tests/unit/config/test_embedded_files.py::test_names_stay_whatever_the_ports",
    ),
    Breakage(
        "let a command end the embedded servers that ran before it",
        "embedded/shards.py",
        "end_use = shards.leave",
        "end_use = shards.stop",
        f"{EMBEDDED}::test_a_command_leaves_servers_that_ran_before_it_without_a_service",
    ),
    Breakage(
        "let anybody on the machine into the embedded servers",
        "embedded/program.py",
        '        "requirepass": password,\n',
        "",
        f"{EMBEDDED}::test_nobody_without_the_password_may_do_anything",
    ),
    Breakage(
        "start a server on files that a server left by a killed supervisor still has",
        "embedded/server.py",
        "        self.ask_to_end()\n        self.wait_for_end()\n",
        "",
        f"{EMBEDDED}::test_a_server_that_was_left_on_the_port_of_before_is_ended_first",
    ),
    Breakage(
        "start no other supervisor where one was killed",
        "runtime/service.py",
        'jobs.append(Job("keep the embedded shards", self._embedded.keep, 1.0))',
        "pass",
        "tests/integration/test_startup.py::test_a_supervisor_that_was_killed_is_replaced_while_the_service_runs",
    ),
    Breakage(
        "leave it that an embedded server's files were removed",
        "embedded/server.py",
        "            write_anew(self.port, self._password, self.dir)",
        "            pass",
        f"{EMBEDDED}::test_files_that_are_removed_under_the_servers_are_written_anew",
    ),
    Breakage(
        "send the password to another user who has taken a port",
        "shards/redis/resp.py",
        "    return not users  # where",
        "    return True  # where",
        f"{EMBEDDED}::test_the_password_is_not_sent_to_another_user_who_has_taken_the_port",
    ),
    Breakage(
        "open a file of ours through a link",
        "private_files.py",
        "flags | os.O_NOFOLLOW",
        "flags",
        "tests/unit/test_private_files.py::test_a_file_is_not_opened_through_a_link",
    ),
    Breakage(
        "keep listening while a worker stops",
        "server/listening.py",
        "            listener.close()\n",
        "",
        "tests/integration/test_worker_life.py::test_a_stopping_worker_listens_no_more_though_a_request_is_under_way",
    ),
    Breakage(
        "close a connection for the sake of others, with a request behind the answered one",
        "server/worker.py",
        "self._share.surplus and len(connection.buffer) == end",
        "self._share.surplus",
        "tests/unit/server/test_worker.py",
    ),
    Breakage(
        "hand a request to a thread before its body is here",
        "server/http1.py",
        "if body is None or body.is_here(data)",
        "if True",
        "tests/integration/test_worker_http.py",
    ),
    Breakage(
        "go on with a connection after half a body",
        "server/thread.py",
        " and not conn.wire.ran_out",
        "",
        "tests/integration/test_worker_http.py",
    ),
    Breakage(
        "reload whatever the new configuration is",
        "server/life.py",
        "        if wrong:\n",
        "        if not wrong and wrong:\n",
        "tests/integration/test_stop_and_reload.py",
    ),
    Breakage(
        "let a reload end the old workers before the new ones serve",
        "server/life.py",
        "    server.manage_workers = end_when_replaced\n",
        "",
        "tests/integration/test_stop_and_reload.py",
    ),
    Breakage(
        "take any reply for one to the command",
        "shards/redis/exchange.py",
        "            if not shape(reply):\n",
        "            if shape(reply) is None:\n",
        "tests/integration/test_garbage.py",
    ),
    Breakage(
        "speak with a server that says it is another shard",
        "shards/redis/connections.py",
        "            raise ConnectionError(complaint)\n",
        "            return\n",
        "tests/integration/test_identity.py",
    ),
    Breakage(
        "wait for the name server although the address is known",
        "shards/redis/names.py",
        "        if found is not None:\n            return found.addresses\n        if not look_up",
        "        if not look_up",
        "tests/unit/shards/redis/test_names.py",
    ),
    Breakage(
        "take a server of a cluster to be down because one slot has left it",
        "shards/redis/wire.py",
        "        down = isinstance(reply, ClusterDownError) and not is_unserved(reply)\n",
        "        down = isinstance(reply, ClusterDownError)\n",
        "tests/unit/shards/redis/test_wire.py",
    ),
)


def run(breakage: Breakage) -> bool:
    """Break a copy and run the test there; print the outcome and tell whether the test failed, as it must."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "project"
        shutil.copytree(
            REPOSITORY, copy, ignore=shutil.ignore_patterns(".git", ".venv", "data", "__pycache__", ".*_cache")
        )
        path = copy / "visit_counter" / breakage.file
        if (found := breakage.found()) != 1:
            print(f"STALE      {breakage.name}: the text to replace is {found} times in {breakage.file}")
            return False
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(breakage.search, breakage.replace), encoding="utf-8")
        finished = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", breakage.test],
            cwd=copy,
            capture_output=True,
            check=False,
            text=True,
        )
    # pytest's status 1: tests ran, and one failed. Anything else is no proof.
    caught = finished.returncode == 1
    seconds = time.monotonic() - started
    print(f"{'caught' if caught else 'NOT CAUGHT':10} {breakage.name}: {breakage.test} ({seconds:.0f} s)", flush=True)
    return caught


def main() -> int:
    """Run the command line; the exit status is 1 if a breakage was not caught."""
    parser = argparse.ArgumentParser(description="Deliberate breakages; see docs/reliability.md.")
    parser.add_argument("--list", action="store_true", help="list them")
    parser.add_argument("--only", metavar="WORD", default="", help="only those with this word in their name")
    options = parser.parse_args()
    chosen = [breakage for breakage in BREAKAGES if options.only in breakage.name]
    if options.list:
        for breakage in chosen:
            print(f"{breakage.name}: visit_counter/{breakage.file}, {breakage.test}")
        return 0
    caught = [run(breakage) for breakage in chosen]
    print(f"{sum(caught)} of {len(caught)} caught")
    return 0 if all(caught) else 1


if __name__ == "__main__":
    sys.exit(main())
