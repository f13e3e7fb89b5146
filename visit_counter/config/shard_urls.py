"""The list of shards that VISITS_SHARDS gives: what is allowed, and how it is shown without its passwords.

    cache=redis://:secret@10.0.0.5:7070,rediss://10.0.0.6:7071,redis+sentinel://10.0.0.7,10.0.0.8/main

is the shards `cache`, `redis_7071` and `redis_26379`; the last is found through two sentinels.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

EMBEDDED = "embedded"

_DEFAULT_PORTS = {"redis": 6379, "rediss": 6379, "redis+sentinel": 26379, "redis+cluster": 6379}
_MANY_HOSTS = ("redis+sentinel", "redis+cluster")
# All that may be said of a connection. Whatever else redis-py takes (its own time-outs, `retry_on_timeout`) would
# break promises. The schemes with several hosts say with `ssl` what the others say with rediss.
TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
TLS_OPTIONS = (*TLS_FILES, "ssl_check_hostname")
_FLAGS = ("ssl", "ssl_check_hostname")
_OPTIONS = {
    "redis": (),
    "rediss": TLS_OPTIONS,
    "redis+sentinel": (*TLS_OPTIONS, "ssl", "sentinel_username", "sentinel_password"),
    "redis+cluster": (*TLS_OPTIONS, "ssl"),
}
# These are said in `served_via` for other things than a shard.
_RESERVED_NAMES = ("in_memory", "batch")

# A comma ends an entry only where another entry follows: it may stand in a password or between two hosts.
_ENTRY_END = re.compile(r",(?=\s*(?:[^=,/@]*=)?[a-z+]+://)")
_ENTRY = re.compile(r"(?:(?P<name>[^=/@]*)=)?(?P<scheme>[a-z+]+)://(?P<rest>.*)", re.DOTALL)
_HOST = r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?"
_TARGET = re.compile(rf"(?P<hosts>{_HOST}(?:,{_HOST})*)(?P<path>/[A-Za-z0-9._/-]*)?(?P<query>\?[^#]*)?")
_HOST_AND_PORT = re.compile(r"[A-Za-z0-9._-]+:[0-9]{1,5}(,[A-Za-z0-9._-]+:[0-9]{1,5})*")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SCHEMES = ", ".join(f"{scheme}://" for scheme in _DEFAULT_PORTS)


@dataclass(frozen=True)
class Shard:
    """One Redis or Valkey server. The url may hold a password: it is not in the repr.

    Of an embedded shard the password is in `password_file`, which is read whenever a connection is opened.
    """

    name: str
    url: str = field(repr=False)
    password_file: str = ""

    @property
    def address(self) -> str:
        """The server as host:port, for people; several with commas between for a sentinel or cluster url."""
        scheme, _, rest = self.url.partition("://")
        target = _TARGET.match(rest.rpartition("@")[2])
        return _with_ports(target["hosts"], scheme) if target else "?"


def parse_shards(text: str | None, mistakes: list[str]) -> list[Shard] | None:
    """Return the shards of a list; none for `embedded`; None if there is a mistake."""
    if text is None:
        return None
    if text == EMBEDDED:
        return []
    shards = []
    for number, entry in enumerate(_ENTRY_END.split(text), start=1):
        try:
            shards.append(_parse_shard(entry.strip()))
        except ValueError as error:
            mistakes.append(f"VISITS_SHARDS is wrong in entry {number}, {_redacted(entry.strip())}: {error}")
    for name, times in Counter(shard.name for shard in shards).items():
        if times > 1:
            mistakes.append(f"VISITS_SHARDS names {times} shards {name}; allowed: one shard for each name, as name=url")
    for target, times in Counter(_server(shard) for shard in shards).items():
        if times > 1:
            mistakes.append(f"VISITS_SHARDS has {target} {times} times; allowed: each server once")
    return shards


def _parse_shard(entry: str) -> Shard:
    """Return the shard of `[name=]url`; raise ValueError with what is allowed, and no part of a secret."""
    match = _ENTRY.fullmatch(entry)
    if not match or match["scheme"] not in _DEFAULT_PORTS:
        raise ValueError(f"allowed: {EMBEDDED}, or [name=]url with url starting with {_SCHEMES}")
    scheme, target = match["scheme"], _TARGET.fullmatch(match["rest"].rpartition("@")[2])
    if not target or re.search(r"[\s#?/]", match["rest"].rpartition("@")[0]):
        raise ValueError("allowed: [name=]scheme://[user:password@]host[:port][/...], the password percent-encoded")
    hosts, path = target["hosts"], (target["path"] or "").strip("/")
    if "," in hosts and scheme not in _MANY_HOSTS:
        raise ValueError(f"allowed: one host, or several with {' or '.join(_MANY_HOSTS)}")
    if any(not 1 <= int(host.rpartition(":")[2]) <= 65535 for host in _with_ports(hosts, scheme).split(",")):
        raise ValueError("allowed: ports 1 to 65535")
    if scheme == "redis+sentinel" and not path:
        raise ValueError("allowed: redis+sentinel://host:port/service, the service being the sentinels' name for it")
    if scheme != "redis+sentinel" and path and not path.isdecimal():
        raise ValueError("allowed: a database number after the slash, or nothing")
    _check_options(scheme, target["query"] or "")
    name = match["name"]
    if name is None:
        name = f"redis_{_with_ports(hosts, scheme).partition(',')[0].rpartition(':')[2]}"
    if not _NAME.fullmatch(name) or name in _RESERVED_NAMES:
        raise ValueError(f"allowed: names of 1 to 64 of A-Z a-z 0-9 _ . -, not {' or '.join(_RESERVED_NAMES)}")
    return Shard(name, f"{scheme}://{match['rest']}")


def _check_options(scheme: str, query: str) -> None:
    """Raise ValueError, with no value in it, if a url asks for something that is not allowed."""
    options = parse_qsl(query[1:], keep_blank_values=True)
    allowed = ", ".join(_OPTIONS[scheme]) or "nothing"
    if any(name not in _OPTIONS[scheme] for name, _ in options):
        raise ValueError(f"allowed behind the question mark of {scheme}://: {allowed}")
    if any(name in _FLAGS and value not in ("true", "false") for name, value in options):
        raise ValueError(f"allowed for {' and '.join(_FLAGS)}: true, false")


def _with_ports(hosts: str, scheme: str) -> str:
    """Return the hosts with the scheme's port where none is given."""
    default = _DEFAULT_PORTS.get(scheme, 0)
    return ",".join(host if re.search(r":[0-9]+$", host) else f"{host}:{default}" for host in hosts.split(","))


def _server(shard: Shard) -> str:
    """Return what makes two shards the same server: the address, and the database or service."""
    target = shard.url.partition("://")[2].rpartition("@")[2].partition("?")[0]
    path = target.partition("/")[2].strip("/")
    return f"{shard.address}/{path}" if path not in ("", "0") else shard.address


def _redacted(entry: str) -> str:
    """Return an entry of the list without anything that could be a secret, however wrong the entry is."""
    match = _ENTRY.fullmatch(entry)
    if not match:
        # A forgotten scheme is the likeliest mistake, so plain host:port is shown.
        return shown(entry if _HOST_AND_PORT.fullmatch(entry) else "***")
    before, at, after = match["rest"].rpartition("@")
    target = _TARGET.fullmatch(after)
    server = f"{target['hosts']}{target['path'] or ''}{'?***' if target['query'] else ''}" if target else "***"
    name = f"{match['name']}=" if match["name"] is not None else ""
    return shown(f"{name}{match['scheme']}://{'***@' if before or at else ''}{server}")


def shown(text: str) -> str:
    """Return a value as it stands in a message: quoted, without control characters, not endless."""
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
