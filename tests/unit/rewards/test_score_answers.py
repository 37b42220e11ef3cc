"""Rewards from a probe: tables of all answers, and shards that give the same bits as the whole."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import CONVENTION, edited, labels_of, pair_states, score, write_split
from safetensors.torch import load_file, save_file

from elkflow.common.errors import UserError
from elkflow.common.files import read_table
from elkflow.probes.saved_probe import Probe
from elkflow.rewards.score_shard import shard_rows


@given(total=st.integers(0, 10_000), shards=st.integers(1, 64))
def test_shards_cover_every_row_once_and_evenly(total, shards):
    cuts = [shard_rows(total, number, shards) for number in range(1, shards + 1)]
    assert cuts[0][0] == 0 and cuts[-1][1] == total
    assert all(before[1] == after[0] for before, after in pairwise(cuts))
    sizes = [last - first for first, last in cuts]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 300),
    width=st.sampled_from([3, 32, 576, 2048]),
    shards=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_log_odds_of_a_row_do_not_depend_on_the_rows_scored_with_it(rows, width, shards, seed):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(1, rows, 2, width, generator=generator)
    mean, scale = torch.randn(1, 2, width, generator=generator), torch.rand(1, 2, width, generator=generator) + 0.5
    weight = torch.randn(width, generator=generator)
    probe = Probe(mean=mean, scale=scale, weight=weight, bias=torch.tensor(0.25), facts={})
    whole = probe.log_odds(states)
    cuts = (shard_rows(rows, number, shards) for number in range(1, shards + 1))
    pieces = torch.cat([probe.log_odds(states[:, first:last]) for first, last in cuts])
    assert torch.equal(whole, pieces)
    odds = ((states - mean[:, None]) / scale[:, None]).double()
    expected = (odds[:, :, 1] - odds[:, :, 0]) @ weight.double() + 0.25
    torch.testing.assert_close(whole.double(), expected[0], atol=1e-4, rtol=1e-4)


def test_rewards_are_probabilities_of_each_answer(whole):
    folder, (_, val), probe = whole
    table, manifest = score(folder, probe, val)
    rewards = np.stack(table["rewards"])
    assert rewards.sum(1) == pytest.approx(np.ones(120))
    odds = read_table(probe / "scores.parquet")["log_odds"].to_numpy()
    assert rewards[:, 1] == pytest.approx(1 / (1 + np.exp(-odds)), abs=1e-5)
    ceiling = manifest["facts"]["gold_ceiling"]
    assert ceiling["value"] == pytest.approx((rewards.argmax(1) == val.labels).mean())
    assert 0.87 < ceiling["low"] <= ceiling["value"] <= ceiling["high"] <= 1
    assert table["id"].tolist() == [f"val-{row}" for row in range(120)]


def test_other_answers_are_refused(whole, tmp_path):
    labels = labels_of(20)
    split = write_split(tmp_path, "ppo", labels, pair_states(labels))
    edited(split.prompts[0], lambda t: t.assign(answers=[["no", "yes"]] * len(t)))
    with pytest.raises(UserError, match=r"answers are \['no', 'yes'\], the probe was fitted on \['No', 'Yes'\]"):
        score(tmp_path, whole[2], split)


def about_answers(folder, drop=()):
    """24 questions, each with a row about each of two answers; the pair's positive member says it is truthful."""
    gold = labels_of(24)
    labels = np.stack([gold == 0, gold == 1], -1).astype(int).reshape(-1)
    split = write_split(folder, "ppo", labels, pair_states(labels, seed=5))
    question = [f"q{row // 2}" for row in range(48)]
    edited(split.prompts[0], lambda t: t.assign(question_id=question, answer_index=np.arange(48) % 2))
    if drop:
        keep = [row for row in range(48) if row not in drop]
        edited(split.prompts[0], lambda t: t.iloc[keep])
        tensors = {name: values[keep].contiguous() for name, values in load_file(split.states[0]).items()}
        metadata = {"layers": CONVENTION, "position": "last", "model": "abc"}
        save_file(tensors, split.states[0], metadata)
    return split, gold


def test_rows_about_answers_become_rewards_of_questions(whole, tmp_path):
    split, gold = about_answers(tmp_path)
    table, manifest = score(tmp_path, whole[2], split)
    assert table["id"].tolist() == [f"q{row}" for row in range(24)]
    assert table["label"].tolist() == gold.tolist()
    rewards = np.stack(table["rewards"])
    assert (rewards.argmax(1) == gold).mean() > 0.9
    assert not np.allclose(rewards.sum(1), 1)
    assert manifest["facts"]["rows"] == 24


def test_a_question_without_all_its_answers_is_named(whole, tmp_path):
    split, _ = about_answers(tmp_path, drop=(5,))
    with pytest.raises(UserError, match="question q2 has no row for answer 1; rewards need a wording with"):
        score(tmp_path, whole[2], split)
