"""The collapse watch on curves shaped like the thesis's two collapses, and on curves that only look bad."""

import math

import numpy as np
import pytest

from elkflow.config.ppo import SentinelSettings
from elkflow.ppo.collapse_watch import CollapseWatch

HEALTHY = {"reward": 0.7, "valid": 0.95, "yes_rate": 0.5, "answer_entropy": 0.69, "kl_k3": 0.4}


def collapse(peak, at, steps=100, seed=0):
    """Figures of a run that climbs to `peak` and falls to reward -1 at step `at`, within two steps."""
    noise = np.random.default_rng(seed).normal(0, 0.03, steps)
    for step in range(steps):
        share = min(1.0, max(0.0, (step - at) / 2 + 0.5))  # of invalid answers
        climbing = 0.35 + (peak - 0.35) * min(1.0, step / (at - 3))
        yield HEALTHY | {"reward": (1 - share) * climbing - share + noise[step], "valid": 1 - share}


@pytest.mark.parametrize(("peak", "at"), [(0.826, 35), (0.873, 79)])
@pytest.mark.parametrize("seed", range(5))
def test_the_thesis_collapses_are_caught_within_their_window(peak, at, seed):
    watch = CollapseWatch(SentinelSettings())
    for step, metrics in enumerate(collapse(peak, at, seed=seed)):
        reason = watch.judge(metrics)
        assert watch.healthy() or step >= at - 1
        if reason:
            break
    assert at <= step <= at + 3
    assert "peak" in reason or "valid" in reason


@pytest.mark.parametrize("seed", range(20))
def test_a_noisy_climb_is_left_alone(seed):
    noise = np.random.default_rng(seed).normal(0, 0.06, 300)
    watch = CollapseWatch(SentinelSettings())
    for step in range(300):
        metrics = HEALTHY | {"reward": 0.4 + 0.4 * min(1, step / 100) + noise[step]}
        assert watch.judge(metrics) is None


def test_a_policy_may_begin_with_invalid_answers():
    watch = CollapseWatch(SentinelSettings())
    assert not any(watch.judge(HEALTHY | {"reward": -1.0, "valid": 0.0}) for _ in range(20))


def test_one_bad_step_is_noise():
    watch = CollapseWatch(SentinelSettings(window=3))
    bad = HEALTHY | {"valid": 0.1, "reward": -0.9}
    for metrics in [HEALTHY] * 5 + [bad, bad, HEALTHY] * 5:
        assert watch.judge(metrics) is None


@pytest.mark.parametrize(
    ("settings", "metrics", "words"),
    [
        ({"entropy": 0.1}, {"answer_entropy": 0.01}, "entropy"),
        ({"kl": 2.0}, {"kl_k3": 2.5}, "KL"),
        ({"valid": 0.5}, {"valid": 0.4}, "valid"),
        ({"reward_drop": 0.2}, {"reward": 0.45}, "peak"),
    ],
)
def test_every_limit_is_watched_and_can_be_switched_off(settings, metrics, words):
    curve = [HEALTHY] * 4 + [HEALTHY | metrics] * 3
    watching = CollapseWatch(SentinelSettings(**settings))
    assert [bool(watching.judge(step)) for step in curve] == [False] * 6 + [True]
    again = CollapseWatch(SentinelSettings(**settings))
    assert words in [again.judge(step) for step in curve][-1]
    off = CollapseWatch(SentinelSettings(**{name: None for name in settings}))
    assert not any(off.judge(step) for step in curve)


def test_one_answer_to_everything_is_a_collapse_only_if_the_rewards_ask_for_others():
    """By default, for twice the window; not where the rewards prefer that answer nearly always, or are unknown."""
    stuck = HEALTHY | {"one_answer": 0.99, "preferred": 0.5}
    found = [CollapseWatch(SentinelSettings())]
    judged = [found[0].judge(step) for step in [HEALTHY] * 4 + [stuck] * 6]
    assert judged[:9] == [None] * 9
    assert "one answer is given to 99.0% of the questions for 6 steps, though the rewards prefer it to 50%" in judged[9]
    for fine in (stuck | {"preferred": 0.95}, HEALTHY | {"one_answer": 0.99}):
        watching = CollapseWatch(SentinelSettings())
        assert not any(watching.judge(step) for step in [fine] * 10)


@pytest.mark.parametrize("name", ["reward", "policy_loss", "gradient_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_not_finite_counts_at_once(name, value):
    assert name in CollapseWatch(SentinelSettings()).judge(HEALTHY | {name: value})


def test_it_goes_on_from_a_checkpoint():
    curve = list(collapse(0.826, 35))
    whole, first = CollapseWatch(SentinelSettings()), CollapseWatch(SentinelSettings())
    expected = [whole.judge(metrics) for metrics in curve]
    for cut in (0, 1, 34, 36):
        first, second = CollapseWatch(SentinelSettings()), CollapseWatch(SentinelSettings())
        found = [first.judge(metrics) for metrics in curve[:cut]]
        second.restore(first.state())
        assert found + [second.judge(metrics) for metrics in curve[cut:]] == expected
