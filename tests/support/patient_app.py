"""The service as it is, but patient with its shards: that a loaded machine is slow is not what a test is about.

`gunicorn "tests.support.patient_app:patient_app()"`; in the test's own process, `patient_stores`.
"""

from __future__ import annotations

from functools import partial

from visit_counter import create_app
from visit_counter.server import startup
from visit_counter.shards import factory
from visit_counter.shards.redis.store import RedisStore

patient_stores = partial(RedisStore, connect_seconds=10, read_seconds=10, add_seconds=10)


def patient_app() -> object:
    """Return the application, its stores made with patience."""
    vars(factory)["RedisStore"] = patient_stores  # made with the same arguments
    with startup.errors_in_one_line():
        return create_app()
