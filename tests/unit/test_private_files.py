"""The data directory is ours alone, or nothing is started in it."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers import REPOSITORY
from visit_counter.errors import StartupError
from visit_counter.private_files import check_data_dir, open_private

OTHER_USER = 65533
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory as the service makes it."""
    check_data_dir(tmp_path / "data")
    return tmp_path / "data"


def test_the_data_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    assert check_data_dir(tmp_path / "a" / "data") == []
    assert stat.S_IMODE((tmp_path / "a" / "data").stat().st_mode) == 0o700
    assert list((tmp_path / "a" / "data").iterdir()) == []


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o775, 0o702])
def test_a_directory_of_ours_that_others_may_write_to_is_closed_and_told(data: Path, mode: int) -> None:
    data.chmod(mode)
    assert check_data_dir(data) == [f"VISITS_DATA_DIR {data} could be written to by other users; it cannot any more"]
    assert stat.S_IMODE(data.stat().st_mode) == mode & ~0o022
    assert check_data_dir(data) == []


@pytest.mark.parametrize(("mode", "closed"), [(0o777, 0o700), (0o775, 0o700), (0o755, 0o755), (0o700, 0o700)])
def test_a_directory_in_it_that_others_may_write_to_becomes_its_owners_alone(
    data: Path, mode: int, closed: int
) -> None:
    for name in ("journal", "shards"):
        (data / name).mkdir()
        (data / name).chmod(mode)
    warnings = check_data_dir(data)
    assert all(stat.S_IMODE((data / name).stat().st_mode) == closed for name in ("journal", "shards"))
    assert len(warnings) == (mode != closed)
    assert all("and 1 more in VISITS_DATA_DIR could be written to by other users" in text for text in warnings)
    assert check_data_dir(data) == []


def test_a_file_in_it_that_others_may_write_to_is_closed_and_told(data: Path) -> None:
    (data / "journal").mkdir(0o700)
    state = data / "journal" / "state.json"
    state.touch()
    state.chmod(0o666)
    assert check_data_dir(data) == [
        f"{state} in VISITS_DATA_DIR could be written to by other users; they cannot any more"
    ]
    assert stat.S_IMODE(state.stat().st_mode) == 0o644


def test_a_directory_kept_elsewhere_by_a_link_is_closed_too(data: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk").chmod(0o777)
    (data / "journal").symlink_to(tmp_path / "disk")
    assert len(check_data_dir(data)) == 1
    assert stat.S_IMODE((tmp_path / "disk").stat().st_mode) == 0o700


def test_a_directory_that_others_can_exchange_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(StartupError, match=r"is in .*/open, where every user can put something else in its place"):
        check_data_dir(tmp_path / "open" / "data")
    (tmp_path / "open").chmod(0o1777)
    assert check_data_dir(tmp_path / "open" / "data") == []


def test_a_link_in_the_place_of_a_file_is_refused(data: Path, tmp_path: Path) -> None:
    (data / "journal").mkdir()
    (data / "journal" / "state.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StartupError, match=r"/journal/state.json in VISITS_DATA_DIR is a link, and no file of ours"):
        check_data_dir(data)
    assert not (tmp_path / "elsewhere").exists()


def test_a_directory_of_ours_may_be_kept_elsewhere_by_a_link(data: Path, tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (data / "shards").symlink_to(tmp_path / "large")
    (tmp_path / "link").symlink_to(data)
    assert check_data_dir(tmp_path / "link") == []


def test_a_file_is_not_opened_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        open_private(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    assert not (tmp_path / "elsewhere").exists()


@as_root
@pytest.mark.parametrize("name", ["", "journal", "journal/0000000001.log", "planted"])
def test_what_belongs_to_another_user_is_refused(data: Path, tmp_path: Path, name: str) -> None:
    (data / "journal").mkdir()
    (data / "journal" / "0000000001.log").touch()
    (data / "planted").symlink_to(tmp_path)
    os.chown(data / name, OTHER_USER, OTHER_USER, follow_symlinks=False)
    with pytest.raises(StartupError, match=rf"belongs to the user {OTHER_USER}, but this is the user root; ") as caught:
        check_data_dir(data)
    assert str(data / name) in str(caught.value)


@as_root
def test_a_link_of_another_user_to_the_data_directory_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(data)
    os.chown(tmp_path / "link", OTHER_USER, OTHER_USER, follow_symlinks=False)
    with pytest.raises(StartupError, match=rf"/link is a link, which belongs to the user {OTHER_USER}"):
        check_data_dir(tmp_path / "link")


# The interpreter may be where only root can start it, so it changes its user itself.
CHECK = """
import os, sys
from pathlib import Path
from visit_counter.errors import StartupError
from visit_counter.private_files import check_data_dir
user = int(sys.argv[2])
os.setgroups([])
os.setgid(user)
os.setuid(user)
try:
    print(check_data_dir(Path(sys.argv[1])))
except StartupError as error:
    print(error)
"""


def check_as_another_user(path: Path) -> str:
    """Return what a process of another user says to a data directory."""
    command = [sys.executable, "-c", CHECK, str(path), str(OTHER_USER)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def everyones() -> Iterator[Path]:
    """A directory like /tmp, which another user can reach."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o1777)
        yield Path(directory)


@as_root
@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (0o700, "cannot write to VISITS_DATA_DIR .*: Permission denied"),
        (0o755, "cannot write to VISITS_DATA_DIR .*: Permission denied"),
        (0o777, "VISITS_DATA_DIR .* can be written to by every user; chmod o-w .*"),
    ],
)
def test_another_user_does_not_use_roots_directory(everyones: Path, mode: int, said: str) -> None:
    (everyones / "data").mkdir()
    (everyones / "data").chmod(mode)
    assert re.fullmatch(said, check_as_another_user(everyones / "data"))


@as_root
def test_another_user_has_a_directory_of_its_own(everyones: Path) -> None:
    assert check_as_another_user(everyones / "data") == "[]"
    assert (everyones / "data").stat().st_uid == OTHER_USER


@as_root
def test_a_directory_in_it_that_is_roots_and_open_to_all_is_refused_to_another_user(everyones: Path) -> None:
    (everyones / "data").mkdir(0o700)
    os.chown(everyones / "data", OTHER_USER, OTHER_USER)
    (everyones / "data" / "journal").mkdir()
    (everyones / "data" / "journal").chmod(0o777)
    assert "journal in VISITS_DATA_DIR can be written to by other users; chmod go-w" in check_as_another_user(
        everyones / "data"
    )
