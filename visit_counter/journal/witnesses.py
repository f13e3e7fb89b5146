"""Witnesses: the processes that know the journal. While there are any, no process makes a new journal.

A process that has opened the journal knows its content, and writes it anew within a second or two if somebody removes
it (`visit_counter.journal.repair`). A process that starts in that time finds no journal. If it made a new one, with
another writer's id, the others could not restore theirs. So it makes one only if no living process knows the journal.
"""

from __future__ import annotations

import fcntl
import tempfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from visit_counter.errors import JournalError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from visit_counter.journal.segments import Journal

# Longer than a witness needs: each inspects the journal's files once a second.
WAIT_SECONDS = 5.0
_POLL_SECONDS = 0.05


class Witnesses:
    """The processes of one service that know the journal. The master makes this before it forks the first worker.

    Each witness holds a lock, and the kernel releases it when the process ends, however it ends. The lock is on a file
    without a name: a file in the data directory could be removed together with the journal.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it stays open for as long as the process lives

    @contextmanager
    def joining(self, journal: Journal) -> Iterator[bool]:
        """Become a witness; the caller opens the journal within the block. Give whether it may make a new journal.

        Raises JournalError if the journal is gone and another process knows it: try again in a second.
        """
        begin = False
        # Take the lock before checking for the journal: with the lock held, no other process makes a new one.
        if not self._lock(fcntl.LOCK_SH) or not journal.is_there():
            self.leave()
            begin = self._lock(fcntl.LOCK_EX)
            if not begin:
                raise JournalError(f"{journal.path} is gone, and a process that knows it is to put it back")
        try:
            yield begin
        except BaseException:
            self.leave()
            raise
        self._lock(fcntl.LOCK_SH)

    def leave(self) -> None:
        """Stop being a witness: this process no longer follows the journal."""
        fcntl.lockf(self._file, fcntl.LOCK_UN)

    def others(self) -> bool:
        """Return whether another process is a witness. Only for a process that is not a witness itself."""
        if not self._lock(fcntl.LOCK_EX):
            return True
        self.leave()
        return False

    def _lock(self, kind: int) -> bool:
        """Take the lock, shared or for this process alone, unless others hold it; return whether it was taken."""
        try:
            fcntl.lockf(self._file, kind | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # which of the two depends on the system
            return False
        return True


def wait_until_there(journal: Journal, seconds: float = WAIT_SECONDS) -> bool:
    """Wait for a journal that a running service may be about to restore; return whether it exists.

    This is for a process that the service's master did not fork: it has no access to the witnesses' lock.
    """
    deadline = time.monotonic() + seconds
    while not journal.is_there():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True
