"""The reward without training: which answer is picked, how often, and at what cost."""

import numpy as np
import pandas as pd
import pytest
import without_rl as script

from elkflow.common.errors import UserError
from elkflow.common.files import write_table
from elkflow.common.manifests import check_manifest
from elkflow.evaluation import without_rl


def test_best_of_n_by_hand():
    probabilities, rewards = np.array([[0.5, 0.2]]), np.array([[0.1, 0.9]])
    once = without_rl.best_of_n(probabilities, rewards, 1)
    assert once == pytest.approx(probabilities)  # one sample: the reward has no say
    twice = without_rl.best_of_n(probabilities, rewards, 2)
    assert twice == pytest.approx(np.array([[0.64 - 0.09, 1 - 0.64]]))  # 0.8² without the better one, 0.3² without any
    assert 1 - twice.sum() == pytest.approx(0.3**2)


def test_answers_of_equal_reward_share_whatever_their_order():
    probabilities, rewards = np.array([[0.5, 0.2, 0.2]]), np.array([[0.9, 0.9, 0.1]])
    found = without_rl.best_of_n(probabilities, rewards, 2)[0]
    assert found[:2].sum() == pytest.approx(1 - 0.3**2) and found[0] / found[1] == pytest.approx(0.5 / 0.2)
    assert without_rl.best_of_n(probabilities[:, ::-1], rewards[:, ::-1], 2)[0] == pytest.approx(found[::-1])
    alike = without_rl.best_of_n(np.ones((1, 2)), np.zeros((1, 2)), 1)
    assert alike == pytest.approx(0.5), "neither of two answers is preferred"


def test_best_of_n_agrees_with_drawing():
    random = np.random.default_rng(0)
    probabilities, rewards = np.array([[0.3, 0.25, 0.15]]), np.array([[0.2, 0.7, 0.4]])
    draws = random.choice(4, p=[0.3, 0.25, 0.15, 0.3], size=(200_000, 4))
    worth = np.array([0.2, 0.7, 0.4, -1.0])[draws]
    picked = np.take_along_axis(draws, worth.argmax(axis=1)[:, None], axis=1)[:, 0]
    shares = np.bincount(picked, minlength=4)[:3] / len(picked)
    assert without_rl.best_of_n(probabilities, rewards, 4)[0] == pytest.approx(shares, abs=5e-3)


def questions(count=40, seed=0):
    """The model says No (answer 0) with 0.6 and Yes with 0.3; the reward is right on all but every eighth question."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, size=count)
    preferred = np.where(np.arange(count) % 8 == 0, 1 - labels, labels)
    return pd.DataFrame(
        {
            "id": [f"q{number}" for number in range(count)],
            "task": "training",
            "scores": [np.log([0.6, 0.3])] * count,
            "rewards": [[0.9, 0.1] if answer == 0 else [0.1, 0.9] for answer in preferred],
            "label": labels,
            "group": [f"g{number % 10}" for number in range(count)],
        }
    )


def test_the_table():
    table = questions()
    found = without_rl.without_rl(table, [1, 2, 16]).set_index(["method", "n"])
    labels = table["label"].to_numpy()
    assert found.loc[("untrained model's likelier answer", 1), "accuracy"] == pytest.approx((labels == 0).mean())
    preferred = found.loc[("answer with the higher reward", 2)]
    assert preferred["accuracy"] == pytest.approx(35 / 40) and preferred["answered"] == 1
    assert preferred["forward_passes"] == 2
    assert preferred["low"] < preferred["accuracy"] < preferred["high"]
    one, two, many = (found.loc[("best of N samples", count)] for count in (1, 2, 16))
    assert one["accuracy"] == pytest.approx(np.where(labels == 0, 0.6, 0.3).mean())
    assert one["answered"] == pytest.approx(0.9) and many["answered"] == pytest.approx(1)
    assert one["accuracy"] < two["accuracy"] < many["accuracy"] < preferred["accuracy"] + 1e-9
    assert many["accuracy"] == pytest.approx(preferred["accuracy"], abs=0.01)
    assert (one["forward_passes"], many["forward_passes"]) == (2, 32)
    assert one["forward_passes_shared"] == pytest.approx(1.9) and many["forward_passes_shared"] == pytest.approx(
        3, abs=0.01
    )


def test_the_script_joins_by_question(tmp_path):
    table = questions()
    write_table(table[["task", "id", "scores", "label"]], tmp_path / "samples.parquet")
    write_table(table[["id", "rewards"]].iloc[::-1], tmp_path / "rewards.parquet")
    write_table(table[["id", "group"]], tmp_path / "prompts.parquet")
    arguments = ["--name", "quick", "--wording", "training", "--counts", "1", "4", "--table", str(tmp_path / "out.csv")]
    for name in ("samples", "rewards", "prompts"):
        arguments += [f"--{name}", str(tmp_path / f"{name}.parquet")]
    (tmp_path / "lineage.json").write_text("{}")
    arguments += ["--lineage", str(tmp_path / "lineage.json"), "--manifest", str(tmp_path / "out.manifest.json")]
    script.main(arguments)
    written = pd.read_csv(tmp_path / "out.csv")
    assert len(check_manifest(tmp_path / "out.manifest.json")["inputs"]) == 1
    assert written["run"].eq("quick").all() and len(written) == 4
    assert written["accuracy"].tolist() == pytest.approx(without_rl.without_rl(table, [1, 4])["accuracy"].tolist())
    write_table(table[["id", "rewards"]].iloc[1:], tmp_path / "rewards.parquet")
    with pytest.raises(UserError, match="question 'q0' has no reward"):
        script.main(arguments)
