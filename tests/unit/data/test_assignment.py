"""Assignment of rows to splits: disjoint, exact, balanced, and independent of the order of rows."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from elkflow.common.errors import UserError
from elkflow.config.data import SplitSettings
from elkflow.data.assignment import (
    RowKeys,
    assign_by_group,
    assign_like_thesis,
    assign_rows,
    connected_groups,
    scramble,
)


def keys(count, groups, seed=0, pairs=False, texts=None):
    """Rows with random labels in random groups; with `pairs`, rows 2i and 2i + 1 are a pair."""
    draw = np.random.default_rng(seed)
    number = np.arange(count, dtype=np.uint64)
    content = scramble(number, 100 + seed)
    if pairs:
        label, pair = np.arange(count) % 2, scramble(number // 2, 7)
        group = scramble((number // 2) % np.uint64(groups), 8)
    else:
        label, pair = draw.integers(0, 2, count), None
        group = scramble(draw.integers(0, groups, count).astype(np.uint64), 8)
    text = content if texts is None else scramble(number % np.uint64(texts), 9)
    return RowKeys(label.astype(np.int64), content, group, text, pair)


def reordered(given_keys, order):
    parts = (given_keys.label, given_keys.content, given_keys.group, given_keys.text, given_keys.pair)
    return RowKeys(*(None if part is None else part[order] for part in parts))


def sizes(train, ppo, val, **more):
    return SplitSettings(train=train, ppo=ppo, val=val, **more)


@settings(max_examples=60, deadline=None)
@given(
    groups=st.integers(20, 60),
    train=st.integers(1, 40),
    ppo=st.integers(1, 60),
    val=st.integers(1, 30),
    seed=st.integers(0, 10),
    pairs=st.booleans(),
)
def test_splits_are_disjoint_exact_balanced_and_share_no_group(groups, train, ppo, val, seed, pairs):
    if pairs:
        train, ppo, val = 2 * train, 2 * ppo, 2 * val
    rows = keys(1200, groups, seed, pairs)
    dealt = assign_by_group(rows, None, sizes(train, ppo, val, seed=seed), labels=2).rows
    assert {name: len(chosen) for name, chosen in dealt.items()} == {"train": train, "ppo": ppo, "val": val}
    together = np.concatenate(list(dealt.values()))
    assert len(np.unique(together)) == len(together)
    seen = [set(rows.group[chosen]) for chosen in dealt.values()]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    for chosen in dealt.values():
        counts = np.bincount(rows.label[chosen], minlength=2)
        assert abs(int(counts[0]) - int(counts[1])) <= len(chosen) % 2
        if pairs:
            assert set(Counter(rows.pair[chosen]).values()) == {2}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), pairs=st.booleans())
def test_the_order_of_rows_does_not_matter(seed, pairs):
    rows = keys(400, 40, 1, pairs, texts=350 if not pairs else None)
    order = np.random.default_rng(seed).permutation(400)
    one = assign_by_group(rows, None, sizes(60, 80, 40), labels=2)
    two = assign_by_group(reordered(rows, order), None, sizes(60, 80, 40), labels=2)
    assert one.removed == two.removed
    for name, chosen in one.rows.items():
        assert (order[two.rows[name]] == chosen).all(), name  # not only the same rows: in the same order


def test_another_seed_deals_other_groups():
    rows = keys(1000, 100)
    one, two = (assign_by_group(rows, None, sizes(100, 100, 100, seed=seed), labels=2).rows["val"] for seed in (1, 2))
    assert set(rows.group[one]) != set(rows.group[two])


def test_all_groups_are_used_where_there_is_room():
    rows = keys(9650, 193, pairs=True)
    dealt = assign_by_group(rows, None, sizes(1600, 2400, 800), labels=2).rows
    assert sum(len(set(rows.group[chosen])) for chosen in dealt.values()) > 180
    assert len(set(rows.group[dealt["val"]])) > 25  # 33 in proportion; as few as would do are 16


def test_the_last_row_can_be_had_and_not_one_more():
    rows = keys(120, 12, pairs=True)  # ten rows a group
    exact = assign_by_group(rows, None, sizes(60, 40, 20), labels=2).rows
    assert sorted(np.concatenate(list(exact.values()))) == list(range(120))
    with pytest.raises(UserError, match=r"20 val \+ 60 train \+ 42 ppo rows .* 120 usable rows in 12 groups"):
        assign_by_group(rows, None, sizes(60, 42, 20), labels=2)


def test_rest_takes_what_is_left():
    rows = keys(120, 12, pairs=True)
    dealt = assign_by_group(rows, None, sizes(20, "rest", 20), labels=2).rows
    assert len(dealt["ppo"]) == 80


def test_unbalanced_splits_keep_the_proportions_of_the_source():
    rows = keys(2000, 500)
    rows = RowKeys((np.arange(2000) % 4 == 0).astype(np.int64), rows.content, rows.group, rows.text)
    dealt = assign_by_group(rows, None, sizes(400, 400, 400, balance=False), labels=2).rows
    for chosen in dealt.values():
        assert 0.15 < rows.label[chosen].mean() < 0.35


def test_near_duplicates_are_counted_and_kept_out():
    rows = keys(1000, 1000, texts=600)
    dealt = assign_by_group(rows, None, sizes(100, 100, 100), labels=2)
    assert dealt.removed == {"duplicates": 400}
    together = np.concatenate(list(dealt.rows.values()))
    assert len(set(rows.text[together])) == len(together)


def test_a_pair_that_loses_a_member_goes():
    rows = keys(200, 100, pairs=True)
    text = rows.text.copy()
    text[1] = text[2]  # members of two different pairs read the same
    dealt = assign_by_group(
        RowKeys(rows.label, rows.content, rows.group, text, rows.pair), None, sizes(20, 20, 20), labels=2
    )
    assert dealt.removed == {"duplicates": 1, "unpaired": 1}


def test_a_val_source_of_its_own_gives_val_and_takes_its_groups_out_of_train():
    train, val = keys(1000, 100, 0), keys(60, 200, 0)
    val = RowKeys(val.label, scramble(val.content, 3), val.group, scramble(val.content, 3))
    dealt = assign_by_group(train, val, sizes(100, 100, "rest"), labels=2)
    assert len(dealt.rows["val"]) == 2 * np.bincount(val.label).min()
    assert dealt.removed["groups_in_val"] > 0
    seen = set(val.group[dealt.rows["val"]])
    assert not seen & set(train.group[dealt.rows["train"]]) and not seen & set(train.group[dealt.rows["ppo"]])


def test_val_wins_a_duplicate():
    train = keys(100, 100)
    val = RowKeys(train.label[:40], scramble(train.content[:40], 3), scramble(train.group[:40], 3), train.text[:40])
    dealt = assign_by_group(train, val, sizes(10, 10, 20), labels=2)
    assert dealt.removed["duplicates"] == 40
    assert not set(train.text[dealt.rows["train"]]) & set(val.text)


# --- the thesis recipe ---


def test_thesis_counts_are_the_published_ones():
    recipe = sizes(10_000, "rest", "rest", recipe="thesis", seed=42, val_seed=2023)
    dealt = assign_like_thesis(104_743, 5_463, recipe).rows
    assert {name: len(rows) for name, rows in dealt.items()} == {"train": 10_000, "ppo": 94_743, "val": 5_463}
    assert sorted(np.concatenate([dealt["train"], dealt["ppo"]])) == list(range(104_743))


@pytest.mark.parametrize(("rows", "take", "train"), [(1000, None, 100), (1000, 400, 123), (50, 80, 10)])
def test_thesis_rows_are_those_of_datasets(rows, take, train):
    """The same calls that the published notebooks make, on row numbers."""
    source = Dataset.from_dict({"row": list(range(rows))})
    shuffled = source.shuffle(seed=42).select(range(min(take or rows, rows)))
    parts = shuffled.train_test_split(train_size=train, seed=42)
    recipe = sizes(train, "rest", "rest", recipe="thesis", take=take)
    dealt = assign_like_thesis(rows, 77, recipe).rows
    assert dealt["train"].tolist() == parts["train"]["row"][:]
    assert dealt["ppo"].tolist() == parts["test"]["row"][:]
    val = Dataset.from_dict({"row": list(range(77))}).shuffle(seed=2023)
    assert dealt["val"].tolist() == val["row"][:]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (sizes(90, 20, 5, recipe="thesis"), r"split.train \+ split.ppo: 90 \+ 20 rows, but there are only 100"),
        (sizes(100, "rest", 5, recipe="thesis"), "there are only 100"),
        (sizes(10, 10, 11, recipe="thesis"), "split.val: 11 rows, but there are only 10"),
    ],
)
def test_thesis_refuses_too_few_rows(recipe, message):
    with pytest.raises(UserError, match=message):
        assign_rows(keys(100, 10), keys(10, 10), recipe, 2)


# --- the pieces ---


def test_mix_is_a_bijection_that_the_seed_changes():
    values = np.arange(10_000, dtype=np.uint64)
    assert len(np.unique(scramble(values, 3))) == 10_000
    assert (scramble(values, 3) != scramble(values, 4)).all()
    assert scramble(np.array([0], np.uint64), 0)[0] == 16294208416658607535  # splitmix64's first output for state 0


def test_connected_follows_links_through_any_column():
    articles = np.array([1, 1, 2, 3, 4], np.uint64)
    questions = np.array([10, 11, 11, 12, 13], np.uint64)
    assert connected_groups(articles, questions).tolist() == [1, 1, 1, 3, 4]
    assert connected_groups(articles) is articles


def test_the_same_in_another_process():
    code = (
        "import sys; sys.path[:0] = sys.argv[1].split(':');"
        "from test_assignment import keys, sizes; from elkflow.data.assignment import assign_by_group;"
        "print(assign_by_group(keys(300, 30), None, sizes(20, 20, 20), 2).rows['val'].tolist())"
    )
    path = f"{sys.path[0]}:workflow/scripts:tests/unit/data"
    printed = subprocess.run(
        [sys.executable, "-c", code, path],
        capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "123"},
    )  # fmt: skip
    assert printed.stdout.strip() == str(
        assign_by_group(keys(300, 30), None, sizes(20, 20, 20), 2).rows["val"].tolist()
    )
