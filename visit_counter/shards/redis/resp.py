"""A few words of the Redis protocol, to see what answers on a port; a supervisor needs no more, and no redis-py."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

from visit_counter.errors import ServerRefusedError

_TIMEOUT_SECONDS = 2.0
_LONGEST_REPLY = 1 << 20


class Listener(NamedTuple):
    """What answers on a port: `kind` is `nothing`, `ours` or `other`.

    For `other`, `detail` says what it is. For `ours`, `ready` tells whether the server has loaded its data.
    """

    kind: str
    detail: str = ""
    ready: bool = False


class Connection:
    """A connection to a server on this machine; for a `with`. Raises OSError, and ValueError for another protocol."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_SECONDS)
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def ask(self, *words: str) -> Any:
        """Return the reply to a command: bytes, a number, None, or a list of such. Raises ServerRefusedError."""
        parts = [os.fsencode(word) for word in words]
        lines = [b"*%d" % len(parts), *(line for part in parts for line in (b"$%d" % len(part), part)), b""]
        self._socket.sendall(b"\r\n".join(lines))
        return self._reply()

    def _reply(self) -> Any:
        line = self._file.readline(65536)
        if not line.endswith(b"\r\n"):
            raise ValueError("no reply")
        kind, text = line[:1], line[1:-2]
        if kind == b"+":
            return text
        if kind == b"-":
            raise ServerRefusedError(text.decode(errors="replace"))
        if kind not in b":$*":
            raise ValueError("not the Redis protocol")
        number = int(text)
        if number > _LONGEST_REPLY:
            raise ValueError("more than any reply to what is asked here")
        if kind == b":":
            return number
        if number < 0:
            return None
        return self._file.read(number + 2)[:-2] if kind == b"$" else [self._reply() for _ in range(number)]


def listener_is_ours(port: int) -> bool:
    """Tell whether what listens on a port of 127.0.0.1 runs as this process's user; to others no password is sent.

    While a server is down, anybody on the machine can listen on its port.
    """
    port_in_hex, listens = f":{port:04X}", "0A"
    users = set()
    for name in ("tcp", "tcp6"):
        with suppress(OSError), Path("/proc/net", name).open(encoding="ascii") as sockets:
            for line in sockets:
                if port_in_hex not in line:
                    continue
                _, address, _, state, _, _, _, user, *_ = line.split()
                if state == listens and address.endswith(port_in_hex):
                    # Those that listen come first, so this is quick also with many connections.
                    if int(user) == os.geteuid():
                        return True
                    users.add(user)
    return not users  # where the system does not tell, nobody can know


def identify(port: int, directory: Path, password: str) -> Listener:
    """Find out what answers on a port of this machine; it is ours if its data is in `directory`."""
    try:
        with Connection(port) as connection:
            if not listener_is_ours(port):
                return Listener("other", "a program of another user")
            return _ask(connection, directory, password)
    except ServerRefusedError as error:
        other = f"a Redis or Valkey that says: {error}"
    except ConnectionRefusedError:
        return Listener("nothing")
    except TimeoutError:
        other = "something that does not answer"
    except (OSError, ValueError, LookupError, TypeError):
        other = "something that is not Redis or Valkey"
    return Listener("other", other)


def _ask(connection: Connection, directory: Path, password: str) -> Listener:
    # With the user's name it is welcome, too, at a server that wants no password.
    connection.ask("AUTH", "default", password)
    found = os.fsdecode(connection.ask("CONFIG", "GET", "dir")[1])
    if os.path.realpath(found) != os.path.realpath(directory):
        return Listener("other", f"another Redis or Valkey, whose data is in {found}")
    return Listener("ours", ready=b"\r\nloading:0\r\n" in connection.ask("INFO", "persistence"))


def protect(port: int, password: str) -> None:
    """Give a server a password if it takes commands without one. Raises OSError, ValueError, ServerRefusedError."""
    with Connection(port) as connection:
        try:
            connection.ask("PING")
        except ServerRefusedError:
            return
        connection.ask("CONFIG", "SET", "requirepass", password)


def write_anew(port: int, password: str, directory: Path) -> None:
    """Have a server whose files were removed write them again. Raises OSError, ValueError, ServerRefusedError."""
    with Connection(port) as connection:
        connection.ask("AUTH", "default", password)
        connection.ask("CONFIG", "SET", "dir", str(directory))
        connection.ask("BGREWRITEAOF")
