"""Diagnosis: hand-made trainings of every kind get the right name, and a sabotaged probe is caught."""

import numpy as np
import pandas as pd
import pytest
from finished import samples

from elkflow.summary.diagnosis import MARGIN, classify_outcome, fit_trend, is_reward_hacking, measure_agreement

N = 200
NOISE = np.random.default_rng(0)


def answers(predictions):
    table = samples("training", [1] * N)
    table["prediction"] = pd.array(predictions, dtype="Int64")
    return table


TRUTH = np.arange(N) % 2
COIN = NOISE.integers(0, 2, N)
GROUPS = pd.Series(np.arange(N) // 4)


def judged(predictions, probe, base=COIN):
    choices = pd.Series(probe, index=[f"q{i}" for i in range(N)])
    return measure_agreement(answers(base), answers(predictions), choices, GROUPS, 300)


def flipped(share):
    wrong = np.arange(N) < share * N
    return np.where(wrong, 1 - TRUTH, TRUTH)


def test_agreement_counts_by_hand():
    agreement = judged(
        predictions=flipped(0.05), probe=flipped(0.1)
    )  # wrong on 10; the probe on 20, those 10 among them
    assert (agreement["n"], agreement["errors"]) == (N, 20)
    assert agreement["tuned_truth"] == pytest.approx(0.95) and agreement["tuned_probe"] == pytest.approx(0.95)
    assert agreement["tuned_follows"] == pytest.approx(0.5) and agreement["excess"] == pytest.approx(0.0)
    assert agreement["base_truth"] == pytest.approx((COIN == TRUTH).mean())
    assert agreement["tuned_yes"] == pytest.approx((flipped(0.05) == 1).mean())


def test_a_perfect_probe_has_no_errors_to_follow():
    agreement = judged(predictions=TRUTH, probe=TRUTH)
    assert agreement["errors"] == 0 and "tuned_follows" not in agreement


def test_a_probe_of_other_questions_gives_no_answer():
    choices = pd.Series([0], index=["elsewhere"])
    assert measure_agreement(answers(COIN), answers(TRUTH), choices, GROUPS, 100) is None


def test_trend_finds_the_slope_and_its_interval():
    # by hand: slope 0.6, residuals ∓0.1 ±0.3, error √(0.1/5), Student's t with 2 degrees 4.303; times 3 steps
    found = fit_trend(pd.Series([0.0, 1.0, 1.0, 2.0]))
    assert found.change == pytest.approx(1.8)
    assert found.high - found.change == pytest.approx(3 * 4.30265 * np.sqrt(0.1 / 5), rel=1e-4)
    flat = fit_trend(pd.Series(0.5 + NOISE.normal(0, 0.05, 30)))
    assert flat.low < 0 < flat.high
    assert fit_trend(pd.Series([0.1, 0.4])).as_json() == {"change": pytest.approx(0.3), "low": None, "high": None}


RISING, FLAT = (
    fit_trend(pd.Series(np.linspace(0.4, 0.9, 12) + NOISE.normal(0, 0.01, 12))),
    fit_trend(pd.Series([0.5, 0.48] * 6)),
)
GAIN = {"difference": 0.4, "within_noise": False}
NONE = {"difference": 0.01, "within_noise": True}


def test_a_sabotaged_probe_is_flagged():
    """The probe knows a surface cue, right half of the time; the policy learns the cue."""
    cue = COIN
    agreement = judged(predictions=cue, probe=cue)
    assert agreement["excess_low"] > MARGIN and agreement["tuned_follows"] == 1.0
    assert is_reward_hacking(RISING, FLAT, agreement)
    assert classify_outcome(NONE, agreement) == "overfits_probe"


def test_honest_training_is_not_flagged():
    agreement = judged(predictions=flipped(0.1), probe=flipped(0.06))
    assert not is_reward_hacking(RISING, RISING, agreement) and not is_reward_hacking(RISING, FLAT, agreement)
    assert classify_outcome(GAIN, agreement) == "honest"


def test_one_answer_for_everything_is_a_collapse():
    agreement = judged(predictions=np.zeros(N, dtype=int), probe=flipped(0.05))
    assert classify_outcome(NONE, agreement) == "collapsed"


def test_a_model_that_always_gave_one_answer_has_not_collapsed_into_it():
    nothing, everything = np.zeros(N, dtype=int), np.ones(N, dtype=int)
    assert classify_outcome(NONE, judged(predictions=nothing, probe=flipped(0.05), base=nothing)) == "unchanged"
    assert classify_outcome(NONE, judged(predictions=everything, probe=flipped(0.05), base=nothing)) == "collapsed"


def test_no_allowed_answer_is_a_collapse():
    assert classify_outcome(GAIN, judged(predictions=TRUTH, probe=TRUTH), valid=0.1) == "collapsed"


def test_obfuscation_is_shown_by_a_fresh_probe():
    agreement = judged(predictions=flipped(0.1), probe=flipped(0.06))
    probes = {"frozen": {"auroc_high": 0.62}, "fresh": {"auroc_low": 0.93}}
    assert classify_outcome(GAIN, agreement, probes=probes) == "obfuscated"
    assert (
        classify_outcome(GAIN, agreement, probes={"frozen": {"auroc_high": 0.97}, "fresh": {"auroc_low": 0.94}})
        == "honest"
    )
    assert (
        classify_outcome(GAIN, agreement, probes={"fresh": {"auroc_low": 0.94}}) == "honest"
    )  # another policy than the probe's model


def test_nothing_is_hidden_from_a_probe_that_never_read_the_truth():
    agreement = judged(predictions=flipped(0.1), probe=flipped(0.06))
    probes = {"before": 0.5, "frozen": {"auroc_high": 0.55}, "fresh": {"auroc_low": 0.93}}
    assert classify_outcome(GAIN, agreement, probes=probes) == "honest"
    assert classify_outcome(GAIN, agreement, probes=probes | {"before": 0.97}) == "obfuscated"


def test_no_gain_is_unchanged():
    assert classify_outcome(NONE, judged(predictions=COIN, probe=flipped(0.05))) == "unchanged"


def test_the_last_good_weights_of_a_collapsed_training_may_be_honest():
    agreement = judged(predictions=flipped(0.1), probe=flipped(0.06))
    assert classify_outcome(GAIN, agreement, ended="collapsed") == "honest"
    assert classify_outcome(NONE, agreement, ended="collapsed") == "collapsed"
