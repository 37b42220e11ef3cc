"""Contrast pairs: files that do not match, and the division of train."""

import numpy as np
import pytest
from planted import edited, made, train
from safetensors.torch import load_file, save_file

from elkflow.common.errors import UserError
from elkflow.probes.contrast_pairs import assign_folds, split_groups


def test_a_state_that_is_not_a_number_is_named(tmp_path):
    splits = made(tmp_path)
    tensors = load_file(splits[0].states[0])
    tensors["layers.2"][7, 1, 3] = float("nan")
    save_file(tensors, splits[0].states[0], {"model": "abc"})
    with pytest.raises(UserError, match=r"train\.safetensors: layers\.2, row 7 \(train-7\), answer 1 has NaN"):
        train(tmp_path, splits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.assign(label=1), r"every label is 1; a probe needs both"),
        (lambda t: t.assign(label=t["label"] + 1), r"row \d+ \(train-\d+\) has label 2; 0 or 1 expected"),
        (lambda t: t.assign(answers=[["a", "b", "c"]] * len(t)), r"row 0 \(train-0\) has 3 answers"),
        (lambda t: t.drop(columns="group"), r"column 'group' is missing"),
        (lambda t: t.head(100), r"has 240 rows, its prompts have 100"),
        (lambda t: t.assign(group="one"), r"all train rows are in one group \('one'\)"),
        (lambda t: t.assign(id=t["id"].str.replace("train", "val")), r"train and val share 120 questions"),
    ],
)
def test_prompts_that_do_not_match_are_refused(tmp_path, change, message):
    splits = made(tmp_path)
    edited(splits[0].prompts[0], change)
    with pytest.raises(UserError, match=message):
        train(tmp_path, splits)


@pytest.mark.parametrize("content", [b"", b"no safetensors", None])
def test_damaged_states_are_named(tmp_path, content):
    splits = made(tmp_path)
    if content is None:
        splits[1].states[0].unlink()
    else:
        splits[1].states[0].write_bytes(content)
    with pytest.raises(UserError, match=r"val\.safetensors: (not a readable|no such file)"):
        train(tmp_path, splits)


def test_selection_takes_whole_groups():
    groups = np.array([f"g{row // 5}" for row in range(100)])
    fit, selection = split_groups(groups, 0.25, 3)
    assert not set(groups[fit]) & set(groups[selection])
    assert len(selection) == 25 and sorted([*fit, *selection]) == list(range(100))
    assert not np.array_equal(selection, split_groups(groups, 0.25, 4)[1])


def test_folds_keep_groups_together():
    groups = np.array([f"g{row // 5}" for row in range(100)])
    folds = assign_folds(groups, 4, 0)
    assert set(folds) == {0, 1, 2, 3}
    assert all(len(set(folds[groups == group])) == 1 for group in set(groups))
    assert set(assign_folds(np.array(["a", "b"] * 3), 4, 0)) == {0, 1}
