"""Intervals and tests: values by hand, limits, and small simulations that the naive methods fail."""

import numpy as np
import pytest
from scipy import stats

from elkflow.common import inference
from elkflow.common.metrics import auroc, ece


def test_one_row_per_group_is_students_t_test():
    values = np.random.default_rng(0).normal(0.3, 1, 40)
    found, peer = inference.cluster_mean(values), stats.ttest_1samp(values, 0)
    interval = peer.confidence_interval()
    assert found == pytest.approx((values.mean(), interval.low, interval.high, peer.pvalue))


def test_rows_of_a_group_that_agree_count_once():
    values = np.random.default_rng(1).normal(size=12)
    repeated, groups = np.repeat(values, 5), np.repeat(np.arange(12), 5)
    assert inference.cluster_mean(repeated, groups) == pytest.approx(inference.cluster_mean(values))
    few, many = inference.cluster_mean(repeated, groups), inference.cluster_mean(repeated)
    assert few.high - few.low > 2 * (many.high - many.low)


def test_cluster_error_by_hand():
    """Groups [1, 3] and [5]: mean 3, sums of deviations −2 and 2, so √(2/1 · 8) / 3."""
    assert inference.cluster_error(np.array([1.0, 3, 5]), np.array([0, 0, 1])) == pytest.approx(4 / 3)


def test_one_group_has_no_interval():
    for found in (inference.cluster_mean([0.2, 0.2], ["a", "a"]), inference.share([1, 0], ["a", "a"])):
        assert np.isnan(found.low) and np.isnan(found.high) and np.isnan(found.p_value)


def test_a_share_is_wilsons_and_never_of_width_zero_at_the_ends():
    from statsmodels.stats.proportion import proportion_confint

    hits = np.arange(1000) < 900
    found = inference.share(hits)
    assert found[1:3] == pytest.approx(proportion_confint(900, 1000, method="wilson"), abs=1e-3)
    everything = inference.share(np.ones(100), np.repeat(np.arange(20), 5))
    assert everything.value == 1 and everything.high == pytest.approx(1) and 0.8 < everything.low < 0.87


def test_always_no_on_balanced_groups_is_fixed_by_design():
    right, groups = np.tile([1, 0], 30), np.repeat(np.arange(15), 4)
    assert inference.share(right, groups)[:3] == (0.5, 0.5, 0.5)
    gain = inference.paired_difference(right, np.ones(60), groups)
    assert gain.value == 0.5 and gain.low < 0.5 and gain.high == pytest.approx(0.5), "its width is the tuned share's"


def test_mid_p_by_hand():
    """Nine of ten differing rows in favour of one: 2 · (P(0) + P(1)/2) of Binomial(10, ½)."""
    first, second = np.arange(30) < 1, (np.arange(30) >= 1) & (np.arange(30) < 10)
    assert inference.mcnemar_mid_p(first, second) == pytest.approx(2 * (1 + 10 / 2) / 1024)
    assert inference.mcnemar_mid_p(first, first) == 1.0


def test_interval_and_test_say_the_same():
    random = np.random.default_rng(3)
    for _ in range(50):
        groups = np.repeat(np.arange(12), 5)
        base, tuned = (random.random((2, 60)) < random.random((2, 12))[:, groups] * 0.5 + 0.25) * 1.0
        found = inference.paired_difference(base, tuned, groups)
        assert (found.p_value < 0.05) == (not found.low <= 0 <= found.high)


def test_groups_that_stand_or_fall_together_do_not_pass_for_a_gain():
    """Size at .05 with 33 groups whose rows agree: near .05, where McNemar's test would reject a third of the time."""
    random, rejected, naive = np.random.default_rng(4), 0, 0
    for _ in range(400):
        groups = np.repeat(np.arange(33), 10)
        base, tuned = (random.random((2, 330)) < np.repeat(random.random((2, 33)) ** 0.2, 10, axis=1)) * 1.0
        rejected += inference.paired_difference(base, tuned, groups).p_value <= 0.05
        naive += inference.mcnemar_mid_p(base == 1, tuned == 1) <= 0.05
    assert 0.02 <= rejected / 400 <= 0.085 < naive / 400


def test_seeds_that_agree_still_leave_the_questions():
    """Three seeds of the same gain on every question: the interval is that over questions, not a point."""
    gains, groups = np.random.default_rng(5).integers(-1, 2, 120).astype(float), np.repeat(np.arange(20), 6)
    assert inference.over_seeds([gains] * 3, groups)[:3] == pytest.approx(
        inference.cluster_mean(gains, groups)[:3], rel=0.05
    )
    assert inference.over_seeds([gains], groups) == inference.cluster_mean(gains, groups)


def test_seeds_that_differ_widen_the_interval():
    gains = np.random.default_rng(6).normal(0.3, 1, (3, 400))
    apart = gains + np.array([-0.2, 0.0, 0.2])[:, None]
    near, far = inference.over_seeds(gains), inference.over_seeds(apart)
    assert far.value == pytest.approx(near.value) and far.high - far.low > 3 * (near.high - near.low)


def test_auroc_of_few_groups_is_covered():
    """Truth .97 with 10 groups: the percentile bootstrap holds it in some 83 % of cases."""
    random, held = np.random.default_rng(7), 0
    shift = np.sqrt(2 * 1.49) * stats.norm.ppf(0.97)
    for _ in range(200):
        groups, labels = np.repeat(np.arange(10), 12), np.arange(120) % 2
        scores = random.normal(size=120) + shift * labels + 0.7 * random.normal(size=10)[groups]
        found = inference.jackknife(auroc, scores, labels, groups=groups, log_odds=True)
        held += found.low <= 0.97 <= found.high
    assert held / 200 >= 0.9


def test_a_perfect_auroc_has_an_interval():
    found = inference.jackknife(auroc, np.arange(40), np.arange(40) >= 20, log_odds=True)
    assert found.value == found.high == 1 and 0.8 < found.low < 0.95


def test_many_groups_are_left_out_in_blocks():
    values = np.random.default_rng(8).normal(size=5000)
    from elkflow.common.metrics import mean

    found = inference.jackknife(mean, values)
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(5000), rel=0.1)


def test_a_calibrated_probe_looks_calibrated_and_an_overconfident_one_does_not():
    random = np.random.default_rng(9)
    probabilities = random.beta(0.5, 0.5, 400)
    calibrated = random.random(400) < probabilities
    expected, limit = inference.calibrated_ece(probabilities)
    assert 0.01 < expected < limit and ece(probabilities, calibrated) <= limit
    assert ece((probabilities > 0.5) * 0.98 + 0.01, random.random(400) < 0.5 + 0.2 * (probabilities - 0.5)) > limit


def test_a_copy_of_the_probe_errs_where_the_probe_errs_and_an_honest_policy_does_not():
    random, groups, labels = np.random.default_rng(10), np.arange(400) // 12, np.arange(400) % 2
    probe_wrong = random.random(400) < 0.08
    base = random.random(400) < 0.5
    copy = probe_wrong ^ (random.random(400) < 0.01)
    honest = random.random(400) < 0.1
    assert inference.errs_with_probe(base, copy, probe_wrong, groups).p_value < 1e-3
    assert inference.errs_with_probe(base, honest, probe_wrong, groups).p_value > 0.01
    assert inference.errs_with_probe(base, base, probe_wrong, groups).p_value > 0.01, "nothing that training did"
    assert inference.errs_with_probe(copy, copy, probe_wrong, groups).p_value > 0.01
    assert inference.errs_with_probe(base, copy, labels < 0, groups) is None, "too few errors to tell"
