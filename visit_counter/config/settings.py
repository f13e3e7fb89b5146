"""Settings: one frozen object; every value checked, all mistakes reported at once.

A value comes from the environment (`VISITS_FLUSH_SECONDS`), else from `config/<profile>.toml`, else from
`config/default.toml` (both `visits_flush_seconds`). A shard's address may hold a password, so no url is ever
part of a repr or of an error.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from visit_counter.config.embedded_files import password_file, shard_names
from visit_counter.config.profiles import PROFILES, Profile
from visit_counter.config.shard_urls import Shard, parse_shards, shown
from visit_counter.errors import SettingsError
from visit_counter.model.clients import parse_networks
from visit_counter.model.origins import parse_origins
from visit_counter.model.rates import Rate, parse_rate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Settings", "Shard"]

FSYNC_POLICIES = ("always", "everysec", "os")

_HERE = Path(__file__).resolve().parent
# An installed package has the files of the folder config/ with it; in a checkout there is that folder itself.
CONFIG_DIR = _HERE / "defaults" if (_HERE / "defaults").is_dir() else _HERE.parent.parent / "config"

_PREFIX = "VISITS_"


@dataclass(frozen=True)
class Settings:
    """What the service is told from outside; `shards` are those that the profile uses, none for `basic`."""

    profile: str
    shards: tuple[Shard, ...]
    embedded: bool
    embedded_ports: tuple[int, ...]
    data_dir: Path
    flush_seconds: float
    cache_seconds: float
    cache_pages: int
    journal_fsync: str
    journal_max_bytes: int
    pending_max_pages: int
    retain_segments: int
    origins: tuple[str, ...]
    trusted_proxies: tuple[str, ...]
    rate_limit: Rate
    repeat_seconds: float
    ignore_addresses: tuple[str, ...]

    @classmethod
    def load(cls, environ: Mapping[str, str]) -> Self:
        """Return the checked settings, or raise SettingsError with every mistake there is."""
        mistakes: list[str] = []
        texts = _gather(environ, mistakes)
        values: dict[str, Any] = {}
        for name, rule in _RULES.items():
            text = texts.get(name, "")
            try:
                values[name] = rule.parse(text)
            except ValueError:
                mistakes.append(f"{_variable(name)} is {shown(text)}; allowed: {rule.allowed}")
        shards = parse_shards(_shards_text(texts, environ, mistakes), mistakes)
        if mistakes:
            raise SettingsError(mistakes)
        return cls(**_for_profile(values, shards))

    @property
    def has(self) -> Profile:
        """Return what the profile has."""
        return PROFILES[self.profile]

    def to_json(self) -> str:
        """Return everything as text, passwords too: for the pipe to a child process, and for nothing else."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Return the settings that `to_json` was given."""
        raw: dict[str, Any] = json.loads(text)
        shards = tuple(Shard(**shard) for shard in raw.pop("shards"))
        raw["rate_limit"] = Rate(*raw["rate_limit"])
        lists = {name: tuple(raw.pop(name)) for name in _LISTS}
        return cls(**raw | lists | {"shards": shards, "data_dir": Path(raw["data_dir"])})


def _gather(environ: Mapping[str, str], mistakes: list[str]) -> dict[str, str]:
    """Return the text of every setting: the files, then the environment over them."""
    texts = _read_toml("default", mistakes)
    given = {_setting(variable): text for variable, text in environ.items() if variable.startswith(_PREFIX)}
    profile = given.get("profile", texts.get("profile", ""))
    if profile in PROFILES:
        texts |= _read_toml(profile, mistakes)
    for name in [name for name in given if name not in _KNOWN]:
        close = get_close_matches(name, _KNOWN, n=1)
        hint = f"did you mean {_variable(close[0])}?" if close else f"known are {', '.join(map(_variable, _KNOWN))}"
        mistakes.append(f"{_variable(name)} is not a setting; {hint}")
        del given[name]
    return texts | given


def _read_toml(profile: str, mistakes: list[str]) -> dict[str, str]:
    path = CONFIG_DIR / f"{profile}.toml"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        mistakes.append(f"config/{path.name} cannot be read: {error}")
        return {}
    known = {_variable(name).lower() for name in _KNOWN}
    mistakes += [f"config/{path.name}: {key} is not a setting" for key in values if key not in known]
    return {_setting(key.upper()): str(value) for key, value in values.items() if key in known}


def _shards_text(texts: Mapping[str, str], environ: Mapping[str, str], mistakes: list[str]) -> str | None:
    """Return the value of VISITS_SHARDS, which may be kept in a file; None if it cannot be had."""
    path = texts.get("shards_file", "")
    if not path:
        return texts.get("shards")
    if "VISITS_SHARDS" in environ:
        mistakes.append("VISITS_SHARDS and VISITS_SHARDS_FILE are both set; allowed: one of them")
        return None
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        reason = error.strerror
    except ValueError:
        reason = "not UTF-8 text"
    mistakes.append(f"VISITS_SHARDS_FILE is {shown(path)}, which cannot be read: {reason}; allowed: a readable file")
    return None


def _for_profile(values: dict[str, Any], shards: list[Shard] | None) -> dict[str, Any]:
    """Return the arguments of Settings: as many shards as the profile uses."""
    limit = PROFILES[values["profile"]].most_shards
    ports = values["embedded_ports"][:limit]
    names = shard_names(values["data_dir"], values["embedded_ports"])
    password = str(password_file(values["data_dir"]))
    local = [Shard(name, f"redis://127.0.0.1:{port}", password) for name, port in zip(names, ports, strict=False)]
    return values | {
        "shards": tuple((shards or local)[:limit]),
        "embedded": not shards and bool(local),
        "embedded_ports": ports if not shards else (),
    }


def _variable(name: str) -> str:
    return f"{_PREFIX}{name.upper()}"


def _setting(variable: str) -> str:
    return variable.removeprefix(_PREFIX).lower()


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        # Not float() alone: it takes "nan", "inf", "1e9", "1_0" and spaces.
        if not re.fullmatch(r"[0-9]{1,16}(\.[0-9]{1,16})?", text) or not low <= float(text) <= high:
            raise ValueError
        return float(text)

    return parse


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text) or not low <= int(text) <= high:
            raise ValueError
        return int(text)

    return parse


def _one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError
        return text

    return parse


def _ports(text: str) -> tuple[int, ...]:
    ports = tuple(_whole(1, 65535)(port.strip()) for port in text.split(","))
    if len(set(ports)) < len(ports):
        raise ValueError
    return ports


def _directory(text: str) -> Path:
    if not text.strip() or text.startswith("~") or "\0" in text:
        raise ValueError
    return Path(text).absolute()


class _Rule(NamedTuple):
    parse: Callable[[str], object]
    allowed: str


def _seconds(low: float, high: int) -> _Rule:
    return _Rule(_number(low, high), f"a number of seconds from {low} to {high}, without a unit")


def _amount(unit: str, low: int, high: int) -> _Rule:
    return _Rule(_whole(low, high), f"a whole number of {unit} from {low} to {high}, without a unit")


_RULES = {
    "profile": _Rule(_one_of(tuple(PROFILES)), ", ".join(PROFILES)),
    "embedded_ports": _Rule(_ports, "different ports from 1 to 65535, with commas between"),
    "data_dir": _Rule(_directory, "a path that does not start with ~"),
    "flush_seconds": _seconds(0.05, 3600),
    "cache_seconds": _seconds(0, 3600),
    "cache_pages": _amount("pages", 1, 100_000_000),
    "journal_fsync": _Rule(_one_of(FSYNC_POLICIES), ", ".join(FSYNC_POLICIES)),
    "journal_max_bytes": _amount("bytes", 65_536, 1 << 50),
    "pending_max_pages": _amount("pages", 1, 1_000_000_000),
    "retain_segments": _amount("segments", 0, 100_000),
    "trusted_proxies": _Rule(parse_networks, "addresses or networks like 10.0.0.0/8, with commas between"),
    "rate_limit": _Rule(parse_rate, "visits in a time like 60/minute (second, minute, hour, day), or nothing"),
    "repeat_seconds": _seconds(0, 86_400),
    "ignore_addresses": _Rule(parse_networks, "addresses or networks like 192.0.2.0/24, with commas between"),
    "origins": _Rule(
        parse_origins, "*, or origins like https://example.org or https://*.example.org, with commas between"
    ),
}
_LISTS = ("embedded_ports", "origins", "trusted_proxies", "ignore_addresses")
_KNOWN = (*_RULES, "shards", "shards_file")
