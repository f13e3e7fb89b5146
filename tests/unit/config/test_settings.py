"""What may be set, from where, and how every mistake is told at once without telling a secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from visit_counter.config.profiles import PROFILES
from visit_counter.config.settings import CONFIG_DIR, Settings, Shard
from visit_counter.errors import SettingsError
from visit_counter.model.rates import Rate

SECRET = "hunter2"


def mistakes_of(**environ: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        Settings.load(environ)
    assert SECRET not in str(caught.value)
    return caught.value.mistakes


def shards_of(text: str) -> list[tuple[str, str]]:
    return [(shard.name, shard.address) for shard in Settings.load({"VISITS_SHARDS": text}).shards]


def test_with_nothing_set_the_defaults_of_the_design_hold() -> None:
    password = str(Path("data/shards/password").absolute())
    assert Settings.load({}) == Settings(
        profile="sharded",
        shards=tuple(Shard(f"redis_{port}", f"redis://127.0.0.1:{port}", password) for port in (7070, 7071)),
        embedded=True,
        embedded_ports=(7070, 7071),
        data_dir=Path("data").absolute(),
        flush_seconds=30,
        cache_seconds=5,
        cache_pages=100_000,
        journal_fsync="everysec",
        journal_max_bytes=1 << 30,
        pending_max_pages=2_000_000,
        retain_segments=20,
        origins=("*",),
        trusted_proxies=("127.0.0.0/8", "::1/128"),
        rate_limit=Rate(0, 1),
        repeat_seconds=0,
        ignore_addresses=(),
    )


def test_the_environment_goes_over_the_files() -> None:
    environ = {
        "VISITS_PROFILE": "batched",
        "VISITS_DATA_DIR": "/srv/visits",
        "VISITS_FLUSH_SECONDS": "0.25",
        "VISITS_CACHE_SECONDS": "0",
        "VISITS_CACHE_PAGES": "7",
        "VISITS_JOURNAL_FSYNC": "always",
        "VISITS_JOURNAL_MAX_BYTES": "65536",
        "VISITS_PENDING_MAX_PAGES": "9",
        "VISITS_RETAIN_SEGMENTS": "15",
        "VISITS_TRUSTED_PROXIES": "10.0.0.0/8",
        "VISITS_RATE_LIMIT": "60/minute",
        "VISITS_REPEAT_SECONDS": "1.5",
        "VISITS_IGNORE_ADDRESSES": "192.0.2.1",
        "VISITS_ORIGINS": "https://a.org, https://*.b.org",
        "VISITS_EMBEDDED_PORTS": "6001, 6002",
        "HOME": "/root",
    }
    settings = Settings.load(environ)
    assert (settings.profile, settings.data_dir, settings.flush_seconds) == ("batched", Path("/srv/visits"), 0.25)
    assert (settings.cache_seconds, settings.cache_pages, settings.journal_fsync) == (0, 7, "always")
    assert (settings.journal_max_bytes, settings.pending_max_pages, settings.retain_segments) == (65536, 9, 15)
    assert settings.embedded_ports == (6001,)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_has_a_file_and_loads(profile: str) -> None:
    assert (CONFIG_DIR / f"{profile}.toml").is_file()
    assert Settings.load({"VISITS_PROFILE": profile}).profile == profile


@pytest.mark.parametrize(
    ("profile", "embedded", "configured"),
    [("basic", 0, 0), ("redis", 1, 1), ("cached", 1, 1), ("batched", 1, 1), ("sharded", 2, 3)],
)
def test_a_profile_takes_the_shards_it_uses(profile: str, embedded: int, configured: int) -> None:
    local = Settings.load({"VISITS_PROFILE": profile})
    assert (len(local.shards), len(local.embedded_ports), local.embedded) == (embedded, embedded, embedded > 0)
    remote = Settings.load({"VISITS_PROFILE": profile, "VISITS_SHARDS": "redis://h:1,redis://h:2,redis://h:3"})
    assert (len(remote.shards), remote.embedded_ports, remote.embedded) == (configured, (), False)


@pytest.mark.parametrize(
    ("text", "shards"),
    [
        ("redis://localhost:7070", [("redis_7070", "localhost:7070")]),
        ("redis://localhost", [("redis_6379", "localhost:6379")]),
        ("a=redis://h:1, b=rediss://user:pw@h:2/3", [("a", "h:1"), ("b", "h:2")]),
        ("a=redis://:p,w@h:1,b=redis://:x=y@h:2", [("a", "h:1"), ("b", "h:2")]),
        ("redis://[::1]:7070/0", [("redis_7070", "[::1]:7070")]),
        ("s=redis+sentinel://h1,h2:5/main", [("s", "h1:26379,h2:5")]),
        ("redis+cluster://h1:7,h2:7?ssl=true,redis://h3:8", [("redis_7", "h1:7,h2:7"), ("redis_8", "h3:8")]),
        ("a=redis://h:1/0,b=redis://h:1/1", [("a", "h:1"), ("b", "h:1")]),
    ],
)
def test_a_list_of_shards_is_read_with_names_and_addresses(text: str, shards: list[tuple[str, str]]) -> None:
    assert shards_of(text) == shards


def test_the_url_is_kept_whole_for_the_client() -> None:
    (shard,) = Settings.load({"VISITS_SHARDS": f"one=redis://:{SECRET}@h:1/2"}).shards
    assert shard.url == f"redis://:{SECRET}@h:1/2"


def test_a_secret_is_not_in_any_text_of_the_settings() -> None:
    settings = Settings.load(
        {"VISITS_SHARDS": f"redis://user:{SECRET}@h:1,s=redis+sentinel://h:2/a?sentinel_password={SECRET}"}
    )
    for text in (repr(settings), str(settings), *(f"{shard} {shard!r} {shard.address}" for shard in settings.shards)):
        assert SECRET not in text


@pytest.mark.parametrize(
    "text",
    [
        SECRET,
        f"redis://:{SECRET}@h:99999",
        f"redis://:{SECRET}#more@h:1",
        f"redis://:{SECRET}/x@h:1",
        f"redis://:{SECRET}",
        f"redis://:{SECRET}@",
        f"redis://:{SECRET} x@h:1",
        f"http://:{SECRET}@h:1",
        f"redis://h:1/a?password={SECRET}",
        f"in_memory=redis://:{SECRET}@h:1",
        f"redis://h:1,redis://:{SECRET}@h:1",
        f"redis://h:1#{SECRET}",
        f"redis://h:1?retry_on_timeout={SECRET}",
        f"redis+cluster://h:1?ssl={SECRET}",
    ],
)
def test_a_secret_is_not_in_the_message_about_a_wrong_list(text: str) -> None:
    assert any("VISITS_SHARDS" in mistake for mistake in mistakes_of(VISITS_SHARDS=text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "allowed: embedded, or [name=]url with url starting with redis://"),
        ("localhost:7070", "entry 1, 'localhost:7070': allowed: embedded"),
        ("embedded,redis://h:1", "entry 1"),
        ("redis://h:1,", "entry 1"),
        ("redis://h:0", "ports 1 to 65535"),
        ("redis://h:65536", "ports 1 to 65535"),
        ("redis://:7070", "scheme://[user:password@]host[:port]"),
        ("redis://h1:1,h2:2", "one host, or several with redis+sentinel"),
        ("redis://h:1/one", "a database number"),
        ("redis+sentinel://h:1", "redis+sentinel://host:port/service"),
        ("=redis://h:1", "names of 1 to 64"),
        ("a b=redis://h:1", "names of 1 to 64"),
        ('"=redis://h:1', "names of 1 to 64"),
        ("batch=redis://h:1", "not in_memory or batch"),
        ("redis://h1:1,redis://h2:1", "names 2 shards redis_1"),
        ("a=redis://h:1,b=redis://h:1/0", "has h:1 2 times"),
    ],
)
def test_a_wrong_list_of_shards_says_what_is_allowed(text: str, said: str) -> None:
    assert any(said in mistake for mistake in mistakes_of(VISITS_SHARDS=text))


@pytest.mark.parametrize("text", ["", "30s", "nan", "inf", "-1", "1e3", "1_0", " 30", "30 ", "0", "3601", "٣"])
def test_seconds_are_a_plain_number_within_bounds(text: str) -> None:
    (mistake,) = mistakes_of(VISITS_FLUSH_SECONDS=text)
    assert (
        mistake == f"VISITS_FLUSH_SECONDS is {text!r}; allowed: a number of seconds from 0.05 to 3600, without a unit"
    )


@pytest.mark.parametrize("text", ["", "1.5", "0", "-1", "1e3", "100000001", "9" * 30, "1k"])
def test_amounts_are_whole_numbers_within_bounds(text: str) -> None:
    (mistake,) = mistakes_of(VISITS_CACHE_PAGES=text)
    assert mistake.endswith("allowed: a whole number of pages from 1 to 100000000, without a unit")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("VISITS_PROFILE", "Sharded"),
        ("VISITS_JOURNAL_FSYNC", "never"),
        ("VISITS_EMBEDDED_PORTS", "7070,7070"),
        ("VISITS_EMBEDDED_PORTS", "7070,"),
        ("VISITS_EMBEDDED_PORTS", "70700"),
        ("VISITS_DATA_DIR", " "),
        ("VISITS_DATA_DIR", "~/visits"),
        ("VISITS_JOURNAL_MAX_BYTES", "1GB"),
        ("VISITS_PENDING_MAX_PAGES", "0"),
        ("VISITS_RETAIN_SEGMENTS", "10m"),
    ],
)
def test_a_wrong_value_is_told_with_its_name_and_what_is_allowed(name: str, text: str) -> None:
    (mistake,) = mistakes_of(**{name: text})
    assert mistake.startswith(f"{name} is {text!r}; allowed: ")


def test_all_mistakes_are_told_at_once() -> None:
    mistakes = mistakes_of(VISITS_PROFILE="x", VISITS_FLUSH_SECONDS="30s", VISITS_SHARDS="y", VISITS_FSYNC="os")
    assert [name for name in ("PROFILE", "FLUSH_SECONDS", "SHARDS", "FSYNC") if f"VISITS_{name} " in str(mistakes)] == [
        "PROFILE",
        "FLUSH_SECONDS",
        "SHARDS",
        "FSYNC",
    ]
    assert len(mistakes) == 4


def test_an_unknown_name_is_a_mistake_with_the_likely_name_and_without_its_value() -> None:
    (mistake,) = mistakes_of(VISITS_FLUSH_SECOND=SECRET)
    assert mistake == "VISITS_FLUSH_SECOND is not a setting; did you mean VISITS_FLUSH_SECONDS?"
    assert "known are VISITS_PROFILE" in mistakes_of(VISITS_Q=SECRET)[0]


def test_a_very_long_value_is_cut_in_the_message() -> None:
    assert len(mistakes_of(VISITS_PROFILE="x" * 10_000)[0]) < 200


def test_shards_may_be_kept_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "shards"
    path.write_text(f"one=redis://:{SECRET}@h:1,\n two=redis://h:2\n")
    assert [shard.name for shard in Settings.load({"VISITS_SHARDS_FILE": str(path)}).shards] == ["one", "two"]


def test_shards_and_a_file_of_shards_together_are_a_mistake(tmp_path: Path) -> None:
    (mistake,) = mistakes_of(VISITS_SHARDS="embedded", VISITS_SHARDS_FILE=str(tmp_path / "shards"))
    assert mistake == "VISITS_SHARDS and VISITS_SHARDS_FILE are both set; allowed: one of them"


@pytest.mark.parametrize(("content", "reason"), [(None, "No such file"), (b"\xff", "not UTF-8")])
def test_a_file_of_shards_that_cannot_be_read_is_a_mistake(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "shards"
    if content is not None:
        path.write_bytes(content)
    (mistake,) = mistakes_of(VISITS_SHARDS_FILE=str(path))
    assert reason in mistake


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("default", "visits_flush_seconds = ", "config/default.toml cannot be read"),
        ("default", "", "VISITS_FLUSH_SECONDS is ''"),
        ("sharded", "flush_seconds = 3", "config/sharded.toml: flush_seconds is not a setting"),
        ("sharded", "visits_flush_seconds = nan", "VISITS_FLUSH_SECONDS is 'nan'"),
    ],
)
def test_a_mistake_in_a_file_is_told_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, said: str
) -> None:
    for profile in ("default", "sharded"):
        (tmp_path / f"{profile}.toml").write_bytes((CONFIG_DIR / f"{profile}.toml").read_bytes())
    (tmp_path / f"{name}.toml").write_text(content)
    monkeypatch.setattr("visit_counter.config.settings.CONFIG_DIR", tmp_path)
    assert any(said in mistake for mistake in mistakes_of())


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://h:1?socket_timeout=60", "allowed behind the question mark of redis://: nothing"),
        ("rediss://h:1?retry_on_timeout=true", "allowed behind the question mark of rediss://: ssl_ca_certs"),
        ("redis+cluster://h:1?sentinel_password=x", "allowed behind the question mark of redis+cluster://"),
        ("redis+cluster://h:1?ssl=yes", "allowed for ssl and ssl_check_hostname: true, false"),
    ],
)
def test_what_a_url_may_not_ask_for_is_told(url: str, said: str) -> None:
    assert any(said in mistake for mistake in mistakes_of(VISITS_SHARDS=url))


def test_a_child_process_is_given_the_settings_as_they_are(tmp_path: Path) -> None:
    """The list of shards may be in a file, and a number so small that str() writes it as 1e-05."""
    (tmp_path / "shards").write_text("one=redis://:secret@h:1", encoding="ascii")
    environ = {"VISITS_SHARDS_FILE": str(tmp_path / "shards"), "VISITS_CACHE_SECONDS": "0.00001"}
    for settings in (Settings.load(environ), Settings.load({}), Settings.load({"VISITS_PROFILE": "basic"})):
        assert Settings.from_json(settings.to_json()) == settings
