"""Who knows the journal, and who may make a new one."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from visit_counter.errors import JournalError
from visit_counter.journal.segments import Journal
from visit_counter.journal.witnesses import Witnesses, wait_until_there

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# What another worker does that has opened the journal; its standard input is the file of the locks.
HOLDS = "import fcntl, time; fcntl.lockf(0, fcntl.LOCK_SH); print(flush=True); time.sleep(600)"


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


@pytest.fixture
def witnesses() -> Iterator[Witnesses]:
    witnesses = Witnesses()
    yield witnesses
    witnesses._file.close()


@contextmanager
def another(witnesses: Witnesses) -> Iterator[None]:
    """Another process knows the journal."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS], stdin=witnesses._file, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def test_who_finds_no_journal_that_anybody_knows_may_make_one(journal: Journal, witnesses: Witnesses) -> None:
    with witnesses.joining(journal) as begin:
        assert begin


def test_who_finds_no_journal_waits_while_another_process_knows_it(journal: Journal, witnesses: Witnesses) -> None:
    with another(witnesses):
        with pytest.raises(JournalError, match="is to put it back"), witnesses.joining(journal):
            pass
        assert witnesses.others()
    assert not witnesses.others()
    with witnesses.joining(journal) as begin:
        assert begin


def test_who_finds_a_journal_opens_it_beside_others_and_makes_none_if_it_goes(
    journal: Journal, witnesses: Witnesses
) -> None:
    journal.prepare()
    with another(witnesses), witnesses.joining(journal) as begin:
        assert not begin
        (journal.path / "writer").unlink()
        with pytest.raises(JournalError, match="is gone"):
            journal.prepare(begin=begin)
    assert not journal.is_there()


def test_a_journal_that_comes_back_is_waited_for(journal: Journal) -> None:
    assert not wait_until_there(journal, 0.0)
    journal.prepare()
    assert wait_until_there(journal, 0.0)
