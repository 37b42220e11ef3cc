"""What follows from (seed, step) alone: amounts and order of prompts, who processes them, seeds."""

import pytest
from pydantic import ValidationError

from elkflow.common.errors import UserError
from elkflow.config.ppo import PPOSettings
from elkflow.ppo import schedule


def test_epochs_become_steps_and_none_at_all_is_an_error():
    assert schedule.total_steps(PPOSettings(steps=7), 100) == 7
    assert schedule.total_steps(PPOSettings(epochs=2, batch_size=8), 30) == 7
    with pytest.raises(UserError, match=r"ppo\.epochs: 0\.25 of 30 prompts is less than a batch of 8"):
        schedule.total_steps(PPOSettings(epochs=0.25, batch_size=8), 30)
    for none in (0, -1):
        with pytest.raises(ValidationError, match="greater than 0"):
            PPOSettings(epochs=none)
        with pytest.raises(ValidationError, match="greater than 0"):
            PPOSettings(steps=none)


def test_every_pass_takes_every_prompt_once_in_another_order():
    taken = [row for step in range(6) for row in schedule.batch_rows(10, 5, step, seed=3)]
    passes = [taken[at : at + 10] for at in (0, 10, 20)]
    assert all(sorted(one) == list(range(10)) for one in passes)
    assert len({tuple(one) for one in passes}) == 3
    assert schedule.batch_rows(10, 5, 0, seed=4) != taken[:5]
    assert sorted(schedule.batch_rows(4, 6, 0, seed=0))[:4] != [0, 0, 1, 1]  # a batch larger than a pass goes round


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_every_row_is_in_one_microbatch_of_its_minibatch(processes, accumulation):
    lengths = [5, 3, 9, 9, 3, 5, 1, 2, 8, 7, 6, 5, 4, 3, 2, 1]
    found = [schedule.parts(lengths, 8, accumulation, process, processes) for process in range(processes)]
    for first in (0, 1):  # of two minibatches
        rows = [row for mine in found for part in mine[first * accumulation :][:accumulation] for row in part]
        assert sorted(rows) == list(range(8 * first, 8 * first + 8))
    for mine in found:
        assert {len(part) for part in mine} == {8 // processes // accumulation}
        for part in mine:
            assert [lengths[row] for row in part] == sorted(lengths[row] for row in part)


def test_parts_are_merged_up_to_a_number_of_rows():
    parts = [[0], [1], [2], [3], [4]]
    assert schedule.merged(parts, 2) == [[0, 1], [2, 3], [4]]
    assert schedule.merged([[0, 1, 2], [3, 4, 5]], 2) == [[0, 1, 2], [3, 4, 5]]


def test_a_derived_seed_depends_on_every_number_and_on_nothing_else():
    assert schedule.derive_seed(0, 1) == 46666290180431037  # on every machine
    assert len({schedule.derive_seed(*numbers) for numbers in ((0, 1), (1, 0), (0, 1, 0), (0,), (10,))}) == 5
