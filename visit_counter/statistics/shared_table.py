"""A small table in memory that all workers of a host share: a number for each key, forgotten when room is needed.

It is made before the workers are forked, and never written to a disk. There is no lock: where two workers change the
same entry within the same microsecond, one of the changes is lost. That is good enough for a limit, and for nothing
that must be exact.
"""

from __future__ import annotations

import mmap
import os
import struct
from hashlib import blake2b

_ENTRY = struct.Struct("<Qd")
_WAYS = 8
_ENTRIES = 1 << 16


class SharedTable:
    """Numbers by key. A key that has not changed for long makes room for another one of its bucket."""

    def __init__(self, entries: int = _ENTRIES) -> None:
        self._buckets = entries // _WAYS
        self._memory = mmap.mmap(-1, entries * _ENTRY.size)
        # Nobody can look for an address in the table without this.
        self._secret = os.urandom(16)

    def get(self, *key: str) -> float:
        """Return the number of a key, 0.0 if there is none."""
        return self._find(key)[1]

    def set(self, number: float, *key: str) -> None:
        """Set the number of a key; of a full bucket the entry with the smallest number goes."""
        at, _, hashed = self._find(key)
        _ENTRY.pack_into(self._memory, at, hashed, number)

    def _find(self, key: tuple[str, ...]) -> tuple[int, float, int]:
        """Return where a key's entry is or goes to, its number, and its hash."""
        text = "\0".join(key).encode("utf-8", "surrogateescape")
        hashed = int.from_bytes(blake2b(text, digest_size=8, key=self._secret).digest(), "little") or 1
        start = hashed % self._buckets * _WAYS * _ENTRY.size
        smallest, at = float("inf"), start
        entries = _ENTRY.iter_unpack(self._memory[start : start + _WAYS * _ENTRY.size])
        for place, (found, number) in enumerate(entries):
            if found == hashed:
                return start + place * _ENTRY.size, number, hashed
            if number < smallest:
                smallest, at = number, start + place * _ENTRY.size
        return at, 0.0, hashed


# All that there are.
TABLES = ("limits", "last", "figures")
_shared: dict[str, SharedTable] = {}


def shared(name: str) -> SharedTable:
    """Return the table of this name. All processes share it that are forked after the first call for it."""
    if name not in _shared:
        _shared[name] = SharedTable()
    return _shared[name]
