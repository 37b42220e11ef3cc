"""Arms: what takes a probe's place is as confident as the probe, and no more the truth than it should be."""

import numpy as np
import pytest
import torch
from planted import labels_of, pair_states, write_split

from elkflow.common.errors import UserError
from elkflow.config.config import Config
from elkflow.config.probe import ProbeSettings
from elkflow.probes import arms
from elkflow.probes.arms import gold_log_odds, replace_direction
from elkflow.probes.contrast_pairs import ContrastPairs
from elkflow.probes.fitting import ProbeData, fit_all, reward_log_odds
from elkflow.probes.methods import Direction
from elkflow.rewards.score_answers import reward_table

BASE = {"model": "m", "dataset": "d", "wording": "plain", "methods": ["logistic"], "allow_weak_probe": True}


@pytest.fixture
def splits(tmp_path):
    written = []
    for seed, (name, size) in enumerate((("train", 300), ("val", 200))):
        labels = labels_of(size, seed)
        written.append(write_split(tmp_path, name, labels, pair_states(labels, seed=seed, truth=3.0)))
    return [ContrastPairs.read(split.prompts, split.states) for split in written]


def fitted_arm(splits, arm, seed=0):
    settings = ProbeSettings(**BASE, arm=arm, seed=seed)
    parts = ProbeData.of(*splits, settings)
    fitted = fit_all(parts, settings)[0]["logistic"]
    replace_direction(fitted, 1, parts, settings)
    return fitted, parts


def agreement(odds, labels):
    return float(((odds > 0) == (labels == 1)).mean())


@pytest.mark.parametrize("arm", ["random_direction", "shuffled_labels"])
def test_an_arm_is_as_confident_as_the_probe_and_not_the_truth(splits, arm):
    probe, parts = fitted_arm(splits, None)
    labels = parts.val.labels
    assert agreement(reward_log_odds(probe.val[1], "partial"), labels) > 0.9
    shares = []
    for seed in range(5):
        fitted, again = fitted_arm(splits, arm, seed)
        assert np.array_equal(again.val.labels, labels), "labels that are reported stay as they are"
        own = ProbeSettings(**BASE, seed=seed)
        untouched = fit_all(ProbeData.of(*splits, own), own)[0]["logistic"]
        confidence = [np.abs(reward_log_odds(each.selection[1], "partial")).mean() for each in (untouched, fitted)]
        assert confidence[1] == pytest.approx(confidence[0], rel=1e-3)
        assert not torch.allclose(fitted.weight[1], untouched.weight[1])
        assert torch.equal(fitted.weight[0], untouched.weight[0]), "other layers keep the probe's direction"
        shares.append(agreement(reward_log_odds(fitted.val[1], "partial"), labels))
    assert 0.3 < np.mean(shares) < 0.7


def test_an_arm_is_the_same_for_the_same_seed(splits):
    first, second = (fitted_arm(splits, "random_direction", seed=3)[0] for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight[1], fitted_arm(splits, "random_direction", seed=4)[0].weight[1])


def test_gold_rewards_are_the_labels_with_the_probes_confidence(splits):
    odds = np.array([2.0, -0.5, 0.0, -3.0])
    assert gold_log_odds(odds, np.array([0, 0, 1, 1])).tolist() == [-2.0, -0.5, 0.0, 3.0]
    pairs = splits[1]
    wrong = np.where(pairs.labels == 1, -1.5, 0.7)
    table, facts = reward_table(pairs, wrong, "gold_labels")
    assert facts["gold_ceiling"]["value"] == 1.0
    rewards = np.stack(table["rewards"].to_pylist())
    assert sorted(set(np.round(rewards.max(1), 4))) == pytest.approx(
        [1 / (1 + np.exp(-0.7)), 1 / (1 + np.exp(-1.5))], abs=1e-4
    )
    assert reward_table(pairs, wrong)[1]["gold_ceiling"]["value"] == 0.0, "without the arm the labels change nothing"


@pytest.mark.parametrize(
    ("change", "message"),
    [({"allow_weak_probe": False}, "allow_weak_probe: true"), ({"calibrate": True}, "leave out `calibrate`")],
)
def test_what_an_arm_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        ProbeSettings(**(BASE | {"arm": "random_direction"} | change))


def test_a_probe_elsewhere_must_read_the_model_that_is_tuned(tmp_path):
    from workspace import tiny_config

    config = tiny_config()
    config["evaluation"] |= {"fresh_probe": True, "off_domain": ["nowhere"]}
    with pytest.raises(UserError, match=r"evaluation\.off_domain: .nowhere. is not among"):
        Config.load(config)
    config["evaluation"]["fresh_probe"] = False
    with pytest.raises(UserError, match="fresh_probe: true"):
        Config.load(config)


def test_a_direction_that_says_nothing_stays_as_it_is(splits, monkeypatch):
    def nothing(method, fit, parts, settings):
        zero = torch.zeros(1, fit.shape[-1])
        return Direction(zero, torch.zeros(1), {})

    settings = ProbeSettings(**BASE, arm="shuffled_labels")
    parts = ProbeData.of(*splits, settings)
    fitted = fit_all(parts, settings)[0]["logistic"]
    monkeypatch.setattr(arms, "fit_method", nothing)
    arms.replace_direction(fitted, 1, parts, settings)
    assert not fitted.weight[1].any() and not fitted.val[1].any()
