"""The names of the embedded shards, and the files they are kept in."""

from __future__ import annotations

from pathlib import Path

import pytest

from visit_counter.config import embedded_files as files
from visit_counter.errors import EmbeddedError


def make(data_dir: Path, *names: str) -> None:
    """Make directories of shards, as the version before did."""
    for name in names:
        files.shard_dir(data_dir, name).mkdir(parents=True)


@pytest.mark.parametrize(
    ("there", "ports", "names"),
    [
        ([], (7070, 7071), ["redis_7070", "redis_7071"]),
        ([], (9000, 7070, 9001), ["redis_7070", "redis_7071", "redis_7072"]),
        # Of the version that named shards by their ports: the same ports, in any order.
        (["redis_6001", "redis_6002"], (6001, 6002), ["redis_6001", "redis_6002"]),
        (["redis_6001", "redis_6002"], (6002, 6001), ["redis_6002", "redis_6001"]),
        (["redis_6001", "redis_6002"], (6001,), ["redis_6001"]),
        # Other ports since: what is there is taken in order.
        (["redis_7070", "redis_7071"], (9000, 9001), ["redis_7070", "redis_7071"]),
        (["redis_900", "redis_7070"], (9000, 9001), ["redis_900", "redis_7070"]),
        (["redis_7070", "redis_7071"], (7070, 9001), ["redis_7070", "redis_7071"]),
        (["redis_7070", "redis_7071"], (9000, 7070), ["redis_7071", "redis_7070"]),
        # One more than before.
        (["redis_6001"], (6001, 6002), ["redis_6001", "redis_7070"]),
        # Whoever changed the ports with that version counts in the new directories, and goes on there.
        (["redis_7070", "redis_7071", "redis_7080", "redis_7081"], (7080, 7081), ["redis_7080", "redis_7081"]),
    ],
)
def test_data_of_the_version_before_keeps_its_names(
    tmp_path: Path, there: list[str], ports: tuple[int, ...], names: list[str]
) -> None:
    make(tmp_path, *there)
    assert files.shard_names(tmp_path, ports) == names


def test_names_stay_whatever_the_ports(tmp_path: Path) -> None:
    make(tmp_path, "redis_6002", "redis_6001", "redis_7070")
    names = files.shard_names(tmp_path, (6002, 6001))
    files.prepare(tmp_path, names)
    assert names == ["redis_6002", "redis_6001"]
    for ports in [(6001, 6002), (7070, 7071), (1, 2)]:
        assert files.shard_names(tmp_path, ports) == names
    assert files.shard_names(tmp_path, (7070,)) == names[:1]
    assert files.unused_directories(tmp_path) == ["redis_7070"]


def test_a_shard_more_takes_a_name_that_has_no_data_yet(tmp_path: Path) -> None:
    files.prepare(tmp_path, ["redis_7080"])
    make(tmp_path, "redis_7070")
    assert files.shard_names(tmp_path, (1, 2)) == ["redis_7080", "redis_7071"]
    # But its own, where the version before ran it: a profile of one shard was in use first.
    assert files.shard_names(tmp_path, (1, 7070)) == ["redis_7080", "redis_7070"]


def test_the_record_of_names_is_never_shortened(tmp_path: Path) -> None:
    files.prepare(tmp_path, ["redis_7070", "redis_7071"])
    files.prepare(tmp_path, ["redis_7070"])
    assert files.shard_names(tmp_path, (1, 2)) == ["redis_7070", "redis_7071"]


@pytest.mark.parametrize("text", ["../elsewhere\n", "redis_7070 redis_7070\n"])
def test_a_record_that_holds_no_names_is_an_error(tmp_path: Path, text: str) -> None:
    files.prepare(tmp_path, [])
    (files.shards_dir(tmp_path) / "names").write_text(text)
    with pytest.raises(EmbeddedError, match=r"/names does not hold the names of the embedded shards$"):
        files.shard_names(tmp_path, (7070,))


def test_a_password_is_drawn_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    files.prepare(tmp_path, [])
    path = files.password_file(tmp_path)
    first = files.read_password(path)
    files.prepare(tmp_path, [])
    assert files.read_password(path) == first
    assert len(first) >= 43
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(one.name for one in files.shards_dir(tmp_path).iterdir()) == ["password"]


@pytest.mark.parametrize("text", ["", "short\n", 'a"b' * 20])
def test_a_password_that_the_service_did_not_make_is_an_error_without_it(tmp_path: Path, text: str) -> None:
    files.prepare(tmp_path, [])
    files.password_file(tmp_path).write_text(text)
    with pytest.raises(EmbeddedError, match=r"/password does not hold a password that this service made") as caught:
        files.read_password(files.password_file(tmp_path))
    assert not text or text.strip() not in str(caught.value)


def test_a_link_in_the_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    files.prepare(tmp_path, [])
    (tmp_path / "elsewhere").write_text("a" * 43)
    files.password_file(tmp_path).unlink()
    files.password_file(tmp_path).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EmbeddedError, match="cannot read the password of the embedded shards"):
        files.read_password(files.password_file(tmp_path))


@pytest.mark.parametrize("text", ["", "no number", "0", "999999999"])
def test_a_pid_file_that_names_no_server_of_ours_is_no_server(tmp_path: Path, text: str) -> None:
    (tmp_path / files.PID_FILE).write_text(text)
    assert files.server_pid(tmp_path) == 0


def test_the_process_of_a_stale_pid_file_is_left_alone(tmp_path: Path) -> None:
    """Its number may be another program's by now."""
    (tmp_path / files.PID_FILE).write_text(Path("/proc/self").readlink().name)
    assert files.server_pid(tmp_path) == 0
