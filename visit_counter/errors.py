"""Every exception this package raises on purpose.

VisitCounterError
 +-- StartupError             the service cannot start; the text is one clear message
 |    +-- SettingsError       settings are wrong; `mistakes` lists all of them
 |    +-- EmbeddedError       the embedded shards cannot run
 +-- RequestError             a request is wrong; `str()` says what is allowed
 |    +-- PageError           the page id breaks the rules of `visit_counter.model.pages`
 |    +-- BadgeError          a badge cannot look like that
 |    +-- BatchError          entries of a batch are wrong; `errors` has them by index
 +-- OriginError              pages of this origin may not count here
 +-- RateError                a client has sent more visits than one may
 +-- JournalError             the visit could not be made durable and is not counted
 |    +-- JournalFullError    a limit on the journal's size or on pending pages is reached
 +-- UncertainError           nobody knows whether the visit is counted; it is never tried again
 +-- StoreError               a store did not do what it was asked
 |    +-- StoreUnavailableError  no answer: refused, reset, timed out, or the breaker is open
 |    +-- StoreRefusedError      an answer, and it is no: wrong password, out of memory, read-only
 |         +-- PartitionMovedError  partitions are on other shards now
 +-- CountUnknownError        the stored part of a count was never known to this process
 +-- FlushBusyError           another process is flushing; nothing was done
 +-- RebalanceError           partitions cannot be moved now
 +-- ShardMapError            what the shards keep of each other cannot be worked by
 +-- ServerRefusedError       a server on this machine answered with an error
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class VisitCounterError(Exception):
    """Base of all errors raised on purpose."""


class StartupError(VisitCounterError):
    """The service cannot start; `str()` is one message for a person."""


class SettingsError(StartupError):
    """One or more settings are wrong; nothing was started."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        self.mistakes = list(mistakes)
        super().__init__("\n".join(["wrong settings:", *(f"  {mistake}" for mistake in self.mistakes)]))


class EmbeddedError(StartupError):
    """The embedded shards cannot run."""


class RequestError(VisitCounterError):
    """A request is wrong; nothing was counted. `str()` tells the client what is allowed."""


class PageError(RequestError):
    """The page id is not 1 to 255 bytes of UTF-8 without control characters."""


class BadgeError(RequestError):
    """A badge cannot look like that."""


class BatchError(RequestError):
    """Entries of a batch are wrong, and nothing was counted: `errors` says of each, by its index, what is wrong."""

    def __init__(self, reason: str, errors: Mapping[int, str]) -> None:
        self.errors = dict(errors)
        super().__init__(reason)


class OriginError(VisitCounterError):
    """Pages of this origin may not count here; nothing was counted."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        super().__init__(f"visits from pages of {origin} are not counted here (VISITS_ORIGINS)")


class RateError(VisitCounterError):
    """A client has sent more visits than one may; nothing was counted. The next may come in `wait_seconds`."""

    def __init__(self, limit: str, wait_seconds: float) -> None:
        self.wait_seconds = wait_seconds
        super().__init__(f"more than {limit} came from your address (VISITS_RATE_LIMIT)")


class JournalError(VisitCounterError):
    """The visit could not be made durable; it is not counted."""


class JournalFullError(JournalError):
    """A limit on the journal or on the pending pages is reached; the visit is not counted."""


class UncertainError(VisitCounterError):
    """Nobody knows whether the visit is counted: its bytes may be in the journal, or no store's answer came."""


class StoreError(VisitCounterError):
    """A store did not do what it was asked."""

    def __init__(self, store: str, reason: str) -> None:
        self.store = store
        self.reason = reason
        super().__init__(f"{store}: {reason}")


class StoreUnavailableError(StoreError):
    """No answer came; whether the call was carried out is unknown."""


class StoreRefusedError(StoreError):
    """The store answered and refused; the call was not carried out."""


class PartitionMovedError(StoreRefusedError):
    """Partitions are on other shards now: `moved` has the shard's name by partition. Nothing was carried out."""

    def __init__(self, store: str, moved: Mapping[int, str]) -> None:
        self.moved = dict(moved)
        partition, name = next(iter(self.moved.items()))
        more = f" and {len(self.moved) - 1} more" if len(self.moved) > 1 else ""
        super().__init__(store, f"partition {partition}{more} has moved to {name}")


class RebalanceError(VisitCounterError):
    """Partitions cannot be moved now; `str()` is one message for a person."""


class CountUnknownError(VisitCounterError):
    """The stored part of a count cannot be had now and was never known to this process."""


class FlushBusyError(VisitCounterError):
    """Another process is flushing; nothing was done."""


class ShardMapError(VisitCounterError):
    """Shard maps that cannot be worked by; `str()` tells a person why."""


class ServerRefusedError(VisitCounterError):
    """A server on this machine answered with an error; `str()` is its text."""
