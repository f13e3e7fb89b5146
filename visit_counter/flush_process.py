"""`python -m visit_counter.flush_process`: one flush, with the settings of the environment, at a low priority."""

from __future__ import annotations

import logging
import os
import sys

from visit_counter.errors import VisitCounterError
from visit_counter.flusher import FlushBusyError, Flusher
from visit_counter.journal import Journal
from visit_counter.settings import Settings
from visit_counter.stores.factory import make_sharded

log = logging.getLogger(__name__)


def main() -> int:
    """Flush once; return the exit status."""
    logging.basicConfig(format="[flush] %(levelname)s %(message)s", level=logging.INFO)
    os.nice(10)
    try:
        settings = Settings.load(os.environ)
        store = make_sharded(settings)
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
    log.info("%d visits of %d pages in %.3f s %s", result.visits, result.pages, result.seconds, result.error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
