"""`python -m visit_counter.flush.process`: one flush, at a low priority, in an interpreter that answers no requests.

Standard input holds the settings, as `flush.launcher` writes them.
"""

from __future__ import annotations

import logging
import os
import sys

from visit_counter import logs
from visit_counter.config.settings import Settings
from visit_counter.errors import FlushBusyError, VisitCounterError
from visit_counter.flush.flusher import Flusher
from visit_counter.journal.segments import Journal
from visit_counter.shards.factory import make_store
from visit_counter.shards.router import ShardedStore

log = logging.getLogger("visit_counter.flush.process")  # not __name__, which is "__main__" in a program


def main() -> int:
    """Flush once, with the settings that standard input holds; return the exit status."""
    logs.set_up()
    os.nice(10)
    try:
        settings = Settings.from_json(sys.stdin.buffer.read())
        store = ShardedStore([make_store(shard) for shard in settings.shards], shared=settings.has.shares_pages)
        flusher = Flusher(
            Journal(settings.data_dir / "journal"),
            store,
            retain_segments=settings.retain_segments,
            max_bytes=settings.journal_max_bytes,
        )
        result = flusher.flush(wait=False)
    except FlushBusyError:
        return 0
    except (VisitCounterError, OSError) as error:
        log.error("%s", error)
        return 1
    log.log(
        logging.WARNING if result.error else logging.INFO,
        "flushed %d visits of %d pages in %.3f s, in a process of its own%s",
        result.visits,
        result.pages,
        result.seconds,
        f"; still pending: {result.error}" if result.error else "",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
