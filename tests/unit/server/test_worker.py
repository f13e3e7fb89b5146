"""What the worker's loop decides without any I/O."""

from __future__ import annotations

import socket

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
