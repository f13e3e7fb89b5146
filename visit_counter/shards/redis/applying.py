"""Applying batches to one shard, and making sure that they are on its disk: the two share one connection."""

from __future__ import annotations

import os
from hashlib import sha1
from itertools import repeat
from threading import Lock
from typing import TYPE_CHECKING, Any

from redis.exceptions import AskError, NoScriptError, RedisError

from visit_counter.errors import StoreRefusedError
from visit_counter.model.visits import Tally
from visit_counter.shards.contract import NO_WATERMARK, Applied, Batch, is_token, segment_of
from visit_counter.shards.redis.commands import bytes_of, partition_key, text_of, watermark_field
from visit_counter.shards.redis.disk import (
    DISK_SHAPE,
    REPLICATION,
    REPLICATION_SHAPE,
    connected_replicas,
    is_on_disk,
    wait_for_disk,
)
from visit_counter.shards.redis.exchange import drop, exchange, exchange_asking, pack
from visit_counter.shards.redis.scripts import load_script
from visit_counter.shards.redis.shapes import is_text, is_text_or_nothing
from visit_counter.shards.redis.wire import explain, is_down, is_elsewhere, peer_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from redis.connection import Connection

    from visit_counter.shards.redis.wire import Wire

# The most that one round trip sends. This bounds the buffers of both sides, and how many outcomes stay unknown when a
# connection is lost.
CHUNK_BATCHES = 64
CHUNK_BYTES = 1_000_000

_SCRIPT = load_script(__package__, "apply")
# Redis calls a script by its SHA-1, which is no secret.
_SCRIPT_SHA = sha1(_SCRIPT, usedforsecurity=False).hexdigest().encode()


# Batches that were applied and may not be on the disk yet: the watermark, by writer and partition.
Unsynced = dict[tuple[str, int], str]


class Applier:
    """Applies batches over one connection of its own, one call at a time."""

    def __init__(
        self,
        shard: str,
        wire: Wire,
        persist_limit_seconds: float,
        report: Callable[[Sequence[Any]], None],
        due_replicas: Callable[[str, Sequence[str]], int | None],
    ) -> None:
        self._shard = shard
        self._report = report
        self._wire = wire
        self._persist_limit_seconds = persist_limit_seconds
        # Called with the server's address and the addresses of its replicas. Returns how many replicas must confirm, or
        # None while a replica that must confirm is not connected.
        self._due_replicas = due_replicas
        self._lock = Lock()
        self._connection: Connection | None = None
        # The batches that `persist` must find on the disk. These were applied over the connection that is open now ...
        self._applied: Unsynced = {}
        # ... and these over a connection that was lost since: the server may have come back without them.
        self._orphaned: Unsynced = {}

    def apply(self, writer: str, batches: Sequence[Batch]) -> list[Applied]:
        """Apply each batch; return the outcome of each."""
        replies = self.send(writer, batches)
        return [applied_of(self._shard, batch, reply) for batch, reply in zip(batches, replies, strict=True)]

    def send(self, writer: str, batches: Sequence[Batch], *, asking: bool = False) -> list[Any]:
        """Apply each batch; return the reply to each: the watermark that the partition has now, or a RedisError.

        Once a reply shows that the shard is down, the other batches are not tried: each chunk would wait for its
        time-out. With `asking`, a server of a cluster also accepts batches of partitions that are being moved to it.
        """
        results: list[Any] = []
        with self._lock:
            for chunk in _chunks(batches, watermark_field(writer)):
                results += self._send(chunk, asking=asking)
                if is_down(results[-1]):
                    results += [results[-1]] * (len(batches) - len(results))
                    break
            self._note(writer, batches, results)
        return results

    def release_moved(self, leaves: Callable[[int], bool]) -> Unsynced:
        """Return the batches that may not be on the disk and that are of moved partitions or lost connections.

        This object no longer waits for them: the caller does.
        """
        with self._lock:
            gone = {at: mark for at, mark in self._applied.items() if leaves(at[1])}
            for at in gone:
                del self._applied[at]
            gone = self._orphaned | gone
            self._orphaned.clear()
        return gone

    def is_unsynced(self, partition: int) -> bool:
        """Return whether a batch was applied to this partition that `persist` must still find on the disk."""
        with self._lock:
            return any(at == partition for _, at in (*self._applied, *self._orphaned))

    def persist(self, timeout_seconds: float) -> bool | None:
        """Wait until all applied batches are on the disks of the server and of its replicas; not longer than the limit.

        WAITAOF covers the last write of its own connection. So for a batch that was applied over a lost connection,
        this first checks that the partition still includes it, and writes the watermark again over the open connection.
        The answer stays False while a replica without an append-only file is connected, because it never confirms. It
        also stays False while a known replica is not connected, because that one may be promoted.
        """
        with self._lock:
            try:
                connection = self._connect()
                if not self._adopt_orphans():
                    return False
                return self._wait(connection, min(timeout_seconds, self._persist_limit_seconds))
            except RedisError as error:
                return False if is_down(error) or isinstance(error, AskError) else None

    def close(self) -> None:
        """Close the connection; a later call opens a new one."""
        with self._lock:
            if self._connection is not None:
                drop(self._connection)

    def _send(self, commands: Sequence[bytes], *, asking: bool = False) -> list[Any]:
        try:
            replies = self._run(self._connect(), commands, asking=asking)
        except RedisError as error:
            replies = [error] * len(commands)
        self._report(replies)
        return replies

    def _note(self, writer: str, batches: Sequence[Batch], replies: Sequence[Any]) -> None:
        """Note the batches that `persist` must find on the disk."""
        for batch, reply in zip(batches, replies, strict=True):
            if not isinstance(reply, RedisError) and _mark_of(reply) == batch.watermark:
                self._applied[writer, batch.partition] = batch.watermark
                self._orphaned.pop((writer, batch.partition), None)

    def _run(self, connection: Connection, commands: Sequence[bytes], *, asking: bool) -> list[Any]:
        """Send script calls. If the script was missing (after SCRIPT FLUSH), a call did not run, and is sent again."""
        send = exchange_asking if asking else exchange
        replies = send(connection, commands, repeat(is_text))
        missed = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if missed and connection.is_connected:
            exchange(connection, [pack(b"SCRIPT", b"LOAD", _SCRIPT)], [is_text])
            again = send(connection, [commands[index] for index in missed], repeat(is_text))
            for index, reply in zip(missed, again, strict=True):
                replies[index] = reply
        return replies

    def _connect(self) -> Connection:
        """Return the connection, which is open and of this process; raises RedisError."""
        connection = self._connection
        if connection is not None and _usable(connection):
            return connection
        self._orphaned |= self._applied
        self._applied.clear()
        self._connection = None
        connection = self._connection = self._wire.open(instead_of=connection)
        (reply,) = exchange(connection, [pack(b"SCRIPT", b"LOAD", _SCRIPT)], [is_text])
        if isinstance(reply, RedisError):
            raise reply
        return connection

    def _adopt_orphans(self) -> bool:
        """Write the watermarks of batches of lost connections again; return whether their partitions include all."""
        for writer in {writer for writer, _ in self._orphaned}:
            known = {partition: mark for (owner, partition), mark in self._orphaned.items() if owner == writer}
            present = self._watermarks(writer, known)
            for partition in known.keys() - present.keys():
                if not self._has_moved(partition):
                    return False
                # The partition's new shard had all of it on its disk before this one gave it up.
                del self._orphaned[writer, partition], known[partition]
            if any(not includes(present[partition], mark) for partition, mark in known.items()):
                return False
            again = [Batch(partition, mark, mark, Tally()) for partition, mark in present.items()]
            replies = [reply for chunk in _chunks(again, watermark_field(writer)) for reply in self._send(chunk)]
            self._note(writer, again, replies)
        return not self._orphaned

    def _watermarks(self, writer: str, partitions: Mapping[int, str]) -> dict[int, str]:
        """Return the watermark of each partition that is on this server; others are left out."""
        field = watermark_field(writer)
        commands = [pack(b"HGET", partition_key(at), field) for at in partitions]
        replies = exchange(self._connect(), commands, repeat(is_text_or_nothing))
        for reply in replies:
            if isinstance(reply, RedisError) and not is_elsewhere(reply):
                raise reply
        return {
            at: text_of(reply or b"") for at, reply in zip(partitions, replies, strict=True) if not is_elsewhere(reply)
        }

    def _has_moved(self, partition: int) -> bool:
        (reply,) = exchange(self._connect(), [pack(b"GET", partition_key(partition))], [is_text_or_nothing])
        return isinstance(reply, bytes) and reply.startswith(b"moved ")

    def _wait(self, connection: Connection, timeout_seconds: float) -> bool | None:
        (info,) = exchange(connection, [pack(*REPLICATION)], [REPLICATION_SHAPE])
        replicas = self._due_replicas(peer_of(connection), connected_replicas(info))
        if replicas is None:
            return False
        (reply,) = exchange(connection, [pack(*wait_for_disk(replicas, timeout_seconds))], [DISK_SHAPE])
        done = is_on_disk(reply, replicas)
        if done:
            self._applied.clear()
        return done


def applied_of(shard: str, batch: Batch, reply: Any) -> Applied:
    """Return the outcome of a batch, from the script's reply or a RedisError."""
    if isinstance(reply, RedisError):
        error = explain(shard, reply)
        refused = isinstance(error, StoreRefusedError)
        return Applied(batch.partition, NO_WATERMARK, error.reason, refused=refused)
    _, *aside = reply.split(b"\t")
    return Applied(batch.partition, _mark_of(reply), aside=tuple(page.decode(errors="replace") for page in aside))


def _mark_of(reply: bytes) -> str:
    return text_of(reply.partition(b"\t")[0])


def _usable(connection: Connection) -> bool:
    """Return whether a connection is open and of this process; one with bytes to read was closed by the server."""
    try:
        return connection.pid == os.getpid() and connection.is_connected and not connection.can_read()
    except (RedisError, OSError):
        return False


def includes(present: str, watermark: str) -> bool:
    """Return whether a partition at `present`, which may be any text, includes everything up to `watermark`."""
    return present == watermark or (is_token(present) and segment_of(present) > segment_of(watermark))


def _chunks(batches: Sequence[Batch], writers_field: bytes) -> Iterator[list[bytes]]:
    """Pack batches into script calls, and give the calls of one round trip at a time.

    `writers_field`: the field of a partition that holds the writer's watermark.
    """
    chunk: list[bytes] = []
    size = 0
    for batch in batches:
        command = _pack_batch(batch, writers_field)
        if chunk and (len(chunk) == CHUNK_BATCHES or size + len(command) > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(command)
        size += len(command)
    if chunk:
        yield chunk


def _pack_batch(batch: Batch, writers_field: bytes) -> bytes:
    parts = [b"EVALSHA", _SCRIPT_SHA, b"1", partition_key(batch.partition), writers_field]
    parts += (bytes_of(batch.expected), batch.watermark.encode())
    for field, number in batch.visits.increments():
        parts += (field.encode(), b"%d" % number)
    return pack(*parts)
