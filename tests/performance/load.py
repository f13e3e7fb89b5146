"""A small load generator: keep-alive connections, one request under way on each, bounded in number and time.

    python -m tests.performance.load PORT METHOD --connections 16 --pages 1000 --seconds 2 --requests 1000000

prints one JSON object. Run it as a process of its own: then neither coverage nor a test's threads slow it. On a
machine of few cores it takes one from the server: its figures compare servers, they are no server's limit.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Self


@dataclass(frozen=True)
class Result:
    """What one run measured; latencies in milliseconds; `statuses` is the number of answers by their status."""

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    seconds: float
    statuses: dict[str, int]


class Connection:
    """One connection that always has one request under way."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent_at = 0.0
        self._read = b""

    def send(self, request: bytes) -> Self:
        """Send a request."""
        self.sent_at = time.perf_counter()
        self.socket.sendall(request)
        return self

    def receive(self) -> str | None:
        """Return the status once the answer is whole; None before. Raises ConnectionError if the server closes."""
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("the server closed a connection in the middle of an answer")
        self._read += data
        head, end, body = self._read.partition(b"\r\n\r\n")
        if not end or len(body) < int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]):
            return None
        self._read = b""
        return head[9:12].decode()


def run(port: int, method: str, *, connections: int, pages: int, seconds: float, requests: int) -> Result:
    """Ask for one page after the other until the time or the number is over."""
    texts = [
        f"{method} /visits/page/{number} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode() for number in range(pages)
    ]
    statuses: Counter[str] = Counter()
    latencies: list[float] = []
    poll = select.epoll()
    by_number: dict[int, Connection] = {}
    start = time.perf_counter()
    sent = 0
    for _ in range(connections):
        connection = Connection(port)
        by_number[connection.socket.fileno()] = connection.send(texts[sent % pages])
        sent += 1
        poll.register(connection.socket, select.EPOLLIN)
    under_way = connections
    while under_way:
        for number, _ in poll.poll():
            connection = by_number[number]
            status = connection.receive()
            if status is None:
                continue
            now = time.perf_counter()
            latencies.append(now - connection.sent_at)
            statuses[status] += 1
            if sent < requests and now - start < seconds:
                connection.send(texts[sent % pages])
                sent += 1
            else:
                under_way -= 1
    took = time.perf_counter() - start
    for connection in by_number.values():
        connection.socket.close()
    poll.close()
    latencies.sort()
    return Result(
        requests_per_second=round(len(latencies) / took, 1),
        p50_ms=round(1000 * latencies[len(latencies) // 2], 3),
        p99_ms=round(1000 * latencies[len(latencies) * 99 // 100], 3),
        seconds=round(took, 3),
        statuses=dict(statuses),
    )


def main() -> None:
    """Run once; print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("method", choices=["GET", "POST"])
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--pages", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--requests", type=int, default=1_000_000)
    options = parser.parse_args()
    json.dump(asdict(run(**vars(options))), sys.stdout)


if __name__ == "__main__":
    main()
