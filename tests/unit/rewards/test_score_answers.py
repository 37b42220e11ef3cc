"""Rewards from a probe: tables of all answers, and shards that give the same bits as the whole."""

import numpy as np
import pytest
from planted import CONVENTION, edited, labels_of, pair_states, score, write_split
from safetensors.torch import load_file, save_file

from elkflow.common.errors import UserError
from elkflow.common.files import read_table


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
