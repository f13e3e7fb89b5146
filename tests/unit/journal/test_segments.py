"""The journal's directory and files."""

from pathlib import Path

import pytest

from visit_counter.errors import JournalError, StartupError
from visit_counter.journal.files import file_system_of
from visit_counter.journal.records import visit_line
from visit_counter.journal.segments import Journal, Segment


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    journal = Journal(tmp_path / "data" / "journal")
    journal.prepare()
    return journal


def put(journal: Journal, number: int, data: bytes) -> Segment:
    (journal.path / Segment(number, number).name).write_bytes(data)
    return Segment(number, number)


def test_the_directory_is_for_its_owner_only(journal: Journal) -> None:
    assert journal.path.stat().st_mode & 0o777 == 0o700


def test_the_writers_id_is_made_once(journal: Journal) -> None:
    writer = journal.writer
    Journal(journal.path).prepare()
    assert Journal(journal.path).writer == writer
    assert len(writer) == 16


def test_two_processes_that_start_at_once_agree_on_the_writer(journal: Journal) -> None:
    writer = journal.writer
    journal.rename_writer("other", replace=False)
    assert journal.writer == writer


def test_a_writers_id_that_cannot_be_read_is_one_clear_error(journal: Journal) -> None:
    (journal.path / "writer").unlink()
    with pytest.raises(JournalError, match="writer's id"):
        _ = journal.writer


def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="cannot be used"):
        Journal(tmp_path / "file" / "journal").prepare()


def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visit_counter.journal.directory.file_system_of", lambda _: "nfs4")
    with pytest.raises(StartupError, match="nfs4"):
        Journal(tmp_path).prepare()


def test_the_file_system_is_that_of_the_nearest_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    spaced = str(tmp_path / "a b").replace(" ", "\\040")
    mounts.write_text(f"d / ext4 rw 0 0\ns {tmp_path} tmpfs rw 0 0\nn {spaced} nfs rw 0 0\n")
    assert file_system_of(tmp_path / "x", mounts) == "tmpfs"
    assert file_system_of(tmp_path / "a b" / "c", mounts) == "nfs"
    assert file_system_of(Path("/elsewhere"), mounts) == "ext4"
    assert file_system_of(tmp_path, tmp_path / "none") == ""


def test_segments_come_in_order_and_a_merged_file_hides_its_parts(journal: Journal) -> None:
    journal.forget(Segment(1, 1))
    for name in [
        "0000000009.log",
        "0000000002.log",
        "0000000003.log",
        "0000000002-0000000004.log",
        "x.log",
        "1.log.tmp",
    ]:
        (journal.path / name).write_bytes(b"")
    assert journal.segments() == [Segment(2, 4), Segment(9, 9)]


def test_sealing_makes_the_next_segment_first_and_returns_all_that_counts(journal: Journal) -> None:
    segment = put(journal, 1, visit_line("a") + visit_line("b"))
    replay = journal.seal(segment)
    assert replay.visits == {"a": 1, "b": 1}
    assert replay.sealed_as.startswith("1:")
    assert journal.segments() == [Segment(1, 1), Segment(2, 2)]


def test_a_second_seal_changes_nothing(journal: Journal) -> None:
    segment = put(journal, 1, visit_line("a"))
    assert journal.seal(segment).sealed_as == journal.seal(segment).sealed_as


def test_a_rewritten_segment_says_the_same(journal: Journal) -> None:
    segment = put(journal, 1, visit_line("a") * 10_000 + visit_line("b"))
    replay = journal.seal(segment)
    journal.write_segment(segment, replay.visits, replay.sealed_as, replay.known)
    again = journal.read(segment)
    assert (again.visits, again.sealed_as, again.lines) == (replay.visits, replay.sealed_as, 3)
    assert journal.token_of(segment) == replay.sealed_as


def test_reading_in_pieces_is_reading_the_whole(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"".join(visit_line(f"page/{number % 7}") for number in range(50))
    segment = put(journal, 1, data)
    whole = journal.read(segment)
    for size in range(1, 90):
        monkeypatch.setattr("visit_counter.journal.files._READ_BYTES", size)
        assert journal.read(segment).visits == whole.visits


def test_the_size_is_that_of_the_segments_alone(journal: Journal) -> None:
    put(journal, 1, b"12345")
    put(journal, 2, b"123")
    (journal.path / "state.json").write_bytes(b"x" * 100)
    assert journal.size_bytes() == 8
    journal.forget(Segment(1, 1))
    assert journal.size_bytes() == 3
