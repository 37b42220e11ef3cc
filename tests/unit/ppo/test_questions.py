"""Which questions are trained on, and which choose the weights to keep."""

import pytest

from elkflow.common.errors import UserError
from elkflow.ppo.questions import Questions, hold_back


def asked(groups):
    names = [f"q{i}" for i in range(len(groups))]
    return Questions(names, names, [["No", "Yes"]] * len(names), [0] * len(names), [[1]] * len(names), groups)


@pytest.mark.parametrize(("rows", "least", "most"), [(10, 10, 13), (1000, 25, 28), (1, 1, 4)])
def test_whole_groups_are_held_back_until_there_are_enough(rows, least, most):
    groups = [f"g{i // 4}" for i in range(100)]
    trained, held = hold_back(asked(groups), rows)
    assert sorted(trained.ids + held.ids) == sorted(asked(groups).ids)
    assert not set(trained.groups) & set(held.groups)
    assert least <= len(held) <= most
    assert [trained.ids.index(name) for name in trained.ids] == list(range(len(trained))), "in the order of the file"
    assert hold_back(asked(groups), rows) == (trained, held)


def test_a_single_group_cannot_be_divided():
    with pytest.raises(UserError, match=r"ppo\.keep: `best`"):
        hold_back(asked(["one"] * 8), 4)
