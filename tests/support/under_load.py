"""One host under load in this process, while something happens to its shards; and the oracle that judges it.

Every page's acknowledged visits are kept. At any time a reader of the host must be given at least what was acknowledged
before it asked, and never less than it was given before. At the end the shards must hold exactly what was acknowledged.
"""

from __future__ import annotations

import random
import time
from contextlib import contextmanager
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING

from tests.support.host import Host
from tests.support.oracle import Oracle
from tests.support.servers import wait_until
from visit_counter.errors import CountUnknownError, StoreError
from visit_counter.model.answers import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from visit_counter.counting.counter import BufferedCounter
    from visit_counter.model.answers import Accepted
    from visit_counter.shards.contract import Store

PAGES = [f"page/{number}" for number in range(300)]
FLUSH_SECONDS = 0.05


class HostOracle(Oracle):
    """The oracle of one host, whose counters it asks itself. A visit that raises an error ends the load: a mistake."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = self.unknown = 0
        self._lock = Lock()

    def visit(self, page: str, record: Callable[[str], Answer | Accepted]) -> None:
        """Count a visit and judge the answer."""
        with self._lock:
            self.begin(page, 1)
            lowest = max(self.acknowledged(page) + 1, self.seen[page])
        answer = record(page)
        with self._lock:
            self.acknowledge(page, 1)
            if isinstance(answer, Answer):
                self.answers += 1
                self.judge(page, answer.visits, lowest)
            else:
                self.unknown += 1

    def look(self, page: str, count: Callable[[str], Answer]) -> None:
        """Read a page and judge the answer."""
        with self._lock:
            lowest = self.lowest(page)
        try:
            answer = count(page)
        except (CountUnknownError, StoreError):
            with self._lock:
                self.unknown += 1
            return
        with self._lock:
            self.answers += 1
            self.judge(page, answer.visits, lowest)

    def judge_stored(self, host: Host) -> None:
        """Compare what the shards hold with what was acknowledged."""
        pages = self.pages()
        stored = host.store.read(host.journal.writer, pages)
        for page, found in zip(pages, stored, strict=True):
            if found.visits != self.acknowledged(page):
                kind = "lost" if found.visits < self.acknowledged(page) else "doubled"
                self.mistakes.append(f"{page}: {kind}: stored {found.visits}, acknowledged {self.acknowledged(page)}")


@contextmanager
def load(path: Path, stores: list[Store], seed: int = 0, retain_segments: int = 200) -> Iterator[HostOracle]:
    """Give the oracle while a host counts, reads and flushes; at the end, flush all and judge what is stored.

    `retain_segments` is that high because flushes are that close: 10 s of them.
    """
    host = Host(path, stores, retain_segments=retain_segments)
    oracle = HostOracle()
    counters = [host.process(), host.process()]
    end = Event()
    rounds = [
        *(_visitor(oracle, counter, random.Random(f"{seed} {index}")) for index, counter in enumerate(counters)),
        _background(host, random.Random(f"{seed} background")),
    ]
    threads = [Thread(target=_repeat, args=(each, end, oracle), daemon=True) for each in rounds]
    for thread in threads:
        thread.start()
    try:
        yield oracle
    finally:
        end.set()
        for thread in threads:
            thread.join()
    wait_until(lambda: not host.flusher.flush().error, "a flush that reaches everything")
    # A rollback of what was confirmed in the last flush is found by one more.
    wait_until(lambda: not host.flusher.flush().error, "another flush that reaches everything")
    wait_until(lambda: _answers(host), "the shards to be read")
    host.close()
    oracle.judge_stored(host)
    oracle.mistakes += host.flusher_damage()
    host.store.close()


def _repeat(step: Callable[[], None], end: Event, oracle: HostOracle) -> None:
    try:
        while not end.is_set():
            step()
    except Exception as error:  # noqa: BLE001 - a thread that dies is a mistake of the service, to be told
        oracle.mistakes.append(f"raised {error!r}")


def _visitor(oracle: HostOracle, counter: BufferedCounter, dice: random.Random) -> Callable[[], None]:
    fresh = iter(range(10**9))

    def step() -> None:
        page = dice.choice(PAGES)
        if dice.random() < 0.02:
            page = f"once/{id(counter)}/{next(fresh)}"
        oracle.visit(page, counter.record)
        oracle.look(dice.choice(PAGES), counter.count)
        time.sleep(dice.uniform(0, 0.002))

    return step


def _background(host: Host, dice: random.Random) -> Callable[[], None]:
    def step() -> None:
        host.flusher.flush()
        host.tick()
        # Every few flushes all cached counts are old, so that the shards are read often.
        host.clock.now += dice.choice([0, 0, 0, 10])
        time.sleep(FLUSH_SECONDS)

    return step


def _answers(host: Host) -> bool:
    try:
        host.store.read(host.journal.writer, PAGES)
    except StoreError:
        return False
    return True
