"""The reward table as a callable."""

import pytest
import torch

from elkflow.common.errors import UserError
from elkflow.rewards import lookup

ANSWERS = ["No", "Yes"]


def test_a_table_answers_for_allowed_responses():
    table = lookup.TableRewards(["a", "b"], [[" No", " Yes"], ["No", "Yes"]], [[0.2, 0.8], [0.9, 0.1]], invalid=-1.0)
    found = table(["a", "a", "b", "b"], [" Yes", "No", "Yes ", "Maybe"])
    assert found.tolist() == pytest.approx([0.8, 0.2, 0.1, -1.0])
    assert found.dtype == torch.float32
    with pytest.raises(UserError, match="the reward table has no prompt 'c'"):
        table(["c"], ["Yes"])


def test_a_table_that_contradicts_itself_is_refused():
    lookup.TableRewards(["a", "a"], [ANSWERS] * 2, [[0.2, 0.8]] * 2)
    with pytest.raises(UserError, match="a prompt occurs twice with different rewards: 'a'"):
        lookup.TableRewards(["a", "a"], [ANSWERS] * 2, [[0.2, 0.8], [0.3, 0.7]])
