"""What the worker's loop decides without any I/O."""

from __future__ import annotations

import socket

import pytest

from visit_counter.model.answers import Ask
from visit_counter.server.balance import Share
from visit_counter.server.connection import Connection
from visit_counter.server.http1 import Framing, Target
from visit_counter.server.worker import VisitWorker


def test_a_connection_with_another_request_in_it_is_not_closed_for_the_sake_of_other_workers() -> None:
    worker = object.__new__(VisitWorker)
    worker._share = Share()
    worker._share.surplus = 1
    asking = []
    for buffer in (b"first, second", b"first", b"first"):
        with socket.socket() as sock:
            connection = Connection(sock, None, None, 0.0)
        connection.buffer = buffer
        asking.append((connection, (Target((Ask(True, "a"),), http10=False), Framing(0, None), len(b"first"))))
    worker._dismiss_some(asking)
    assert [framing.close for _, (_, framing, _) in asking] == [None, True, None]


def test_a_worker_with_more_than_its_share_does_not_listen_and_takes_what_nobody_else_took(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listens: list[bool] = []
    monkeypatch.setattr(VisitWorker, "set_accept_enabled", lambda _, enabled: listens.append(enabled))
    accepted: list[int] = []

    def accept(_: VisitWorker, fd: int, _now: float) -> list[Connection]:
        accepted.append(fd)
        return []

    monkeypatch.setattr(VisitWorker, "_accept", accept)
    worker = object.__new__(VisitWorker)
    worker.nr_conns, worker.worker_connections, worker._accepting = 1, 10, False
    worker._listeners = {3: (None, None)}
    worker._share = Share()
    worker._share.update(16, [0])
    worker._accept_or_yield(0.0)
    assert accepted == [3]
    worker._share.update(8, [8])
    worker._accept_or_yield(1.0)
    assert listens == [False, True]
