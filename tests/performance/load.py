"""A small load generator: keep-alive connections, one request under way on each, bounded in number and time.

    python -m tests.performance.load PORT METHOD --connections 16 --pages 1000 --seconds 2 --requests 1000000

prints one JSON object. Run it as a process of its own: then neither coverage nor a test's threads slow it. On a
machine of few cores it takes one from the server: its figures compare servers, they are no server's limit.
"""

from __future__ import annotations

import argparse
import json
import select
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Self

from tests.support.http_client import Asker


@dataclass(frozen=True)
class Result:
    """What one run measured; latencies in milliseconds; `statuses` is the number of answers by their status."""

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    seconds: float
    statuses: dict[str, int]


class Connection(Asker):
    """One connection that always has one request under way."""

    sent_at = 0.0

    def send(self, request: bytes) -> Self:
        """Send a request."""
        self.sent_at = time.perf_counter()
        self.sock.sendall(request)
        return self


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
        by_number[connection.sock.fileno()] = connection.send(texts[sent % pages])
        sent += 1
        poll.register(connection.sock, select.EPOLLIN)
    under_way = connections
    while under_way:
        for number, _ in poll.poll():
            connection = by_number[number]
            answer = connection.receive()
            if answer is None:
                continue
            now = time.perf_counter()
            latencies.append(now - connection.sent_at)
            statuses[str(answer[0])] += 1
            if sent < requests and now - start < seconds:
                connection.send(texts[sent % pages])
                sent += 1
            else:
                under_way -= 1
    took = time.perf_counter() - start
    for connection in by_number.values():
        connection.sock.close()
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
