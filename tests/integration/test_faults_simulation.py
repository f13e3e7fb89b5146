"""A short run of the simulation; `python -m tests.faults --only simulation` is the long one."""

from __future__ import annotations

import pytest

from tests.faults.simulation import HARMFUL_SEEDS, LOOKING_SEEDS, STARTING_SEEDS, run_seeds

pytestmark = pytest.mark.quick

# Each of these once broke a promise.
ONCE_BROKEN = (1, 5, 16, 48, 148, 195, 525, 1453, 1535, 2432, 3141, 8748, 20987, 24389, 3_001_507, 6_001_500)


@pytest.mark.parametrize("seed", ONCE_BROKEN)
def test_a_seed_that_once_broke_a_promise_keeps_it(seed: int) -> None:
    found = run_seeds(range(seed, seed + 1))
    assert found.seed is None, found.error.args


def test_no_seed_loses_or_doubles_a_visit() -> None:
    found = run_seeds(range(200_000, 200_300))
    assert found.seed is None, (found.seed, found.error.args)
    assert found.died > 0


def test_no_cached_count_that_a_look_finds_fresh_is_wrong() -> None:
    found = run_seeds(range(LOOKING_SEEDS[-1].start, LOOKING_SEEDS[-1].start + 200))
    assert found.seed is None, (found.seed, found.error.args)


def test_no_failing_sync_and_no_file_that_is_removed_or_cut_loses_or_doubles_a_visit() -> None:
    found = run_seeds(HARMFUL_SEEDS[:200])
    assert found.seed is None, (found.seed, found.error.args)


def test_no_process_that_starts_while_files_are_gone_loses_or_doubles_a_visit_or_stops_the_others() -> None:
    found = run_seeds(STARTING_SEEDS[:350])
    assert found.seed is None, (found.seed, found.error.args)


# With each of these a repair once went wrong.
@pytest.mark.parametrize(
    "seed",
    [
        1_000_053,
        1_000_337,
        1_000_434,
        1_000_832,
        1_000_942,
        1_001_024,
        1_002_658,
        1_010_405,
        1_071_498,
        1_022_481,
        1_042_102,
    ],
)
def test_a_seed_whose_repair_once_went_wrong_keeps_its_promises(seed: int) -> None:
    found = run_seeds(range(seed, seed + 1))
    assert found.seed is None, found.error.args
