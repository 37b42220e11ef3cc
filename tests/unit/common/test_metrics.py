"""Metrics against scikit-learn and against figures worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import brier_score_loss, roc_auc_score

from elkflow.common import metrics

SCORES = np.array([0.1, 0.4, 0.4, 0.8])
LABELS = np.array([0, 0, 1, 1])


def test_values_by_hand():
    assert metrics.auroc(SCORES, LABELS) == pytest.approx(3.5 / 4)
    assert metrics.accuracy(SCORES, LABELS) == 0.75
    assert metrics.accuracy([0.5, 0.5], [0, 1]) == 0.5 and metrics.accuracy([0.5], [0]) == 1  # undecided is no
    assert metrics.brier(SCORES, LABELS) == pytest.approx((0.01 + 0.16 + 0.36 + 0.04) / 4)
    # slices [0.1, 0.2), [0.4, 0.5), [0.8, 0.9): gaps −0.1, (−0.4 + 0.6), 0.2
    assert metrics.ece(SCORES, LABELS) == pytest.approx((0.1 + 0.2 + 0.2) / 4)
    assert metrics.calibrated_accuracy(SCORES - 5, LABELS) == metrics.calibrated_accuracy(SCORES, LABELS)
    assert metrics.calibrated_accuracy([-3, -2, -9, -1], [1, 0, 0, 1]) == 0.5


def test_calibrated_accuracy_calls_as_many_positive_as_there_are():
    scores = [0.9, 0.8, 0.3, 0.1, 0.05]
    assert metrics.calibrated_accuracy(scores, [1, 0, 0, 0, 0]) == 1.0
    assert metrics.calibrated_accuracy(scores, [0, 1, 0, 0, 0]) == pytest.approx(0.6)
    assert metrics.calibrated_accuracy(scores, [0, 0, 1, 1, 1]) == pytest.approx(0.2)


def test_calibrated_accuracy_of_resamples():
    """A row drawn twice is called positive if the middle of its copies comes before the count of positives."""
    weights = np.array([[1, 1, 1, 1], [3, 1, 0, 2], [1, 2, 1, 0]], dtype=np.float32)
    found = metrics.calibrated_accuracy([0.9, 0.8, 0.3, 0.1], [1, 0, 1, 0], weights)
    assert found.tolist() == [0.5, 1.0, 0.75]
    assert metrics.calibrated_accuracy([0.9, 0.8], [0, 1], np.array([[3, 2]], dtype=np.float32)).tolist() == [0.0]


def test_slices_of_the_calibration_error():
    assert metrics.ece([1.0, 0.85], [0, 1]) == pytest.approx((1 + 0.15) / 2)  # 1 belongs to the last of ten
    assert metrics.ece([0.905, 0.99], [1, 0]) == pytest.approx(0.9475 - 0.5)
    assert metrics.ece([0.895, 0.85], [1, 0]) == pytest.approx(0.8725 - 0.5)


def test_an_interval_is_of_every_resample():
    weights = np.array([[2, 0], [0, 2]], dtype=np.float32)
    found = metrics.bootstrap(metrics.mean, [0.0, 1.0], weights=weights)
    assert tuple(found) == pytest.approx((0.5, 0.025, 0.975))


def test_one_label_has_no_auroc():
    assert np.isnan(metrics.auroc(SCORES, np.ones(4)))


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=25, deadline=None)
def test_weights_stand_for_repeated_rows(seed, ties):
    rng = np.random.default_rng(seed)
    labels = np.r_[0, 1, rng.integers(0, 2, 30)]
    scores = rng.uniform(size=32).round(1 if ties else 9)
    weights = np.stack([np.r_[1, 1, rng.integers(0, 4, 30)] for _ in range(3)]).astype(np.float32)
    for name in ("auroc", "accuracy", "brier", "ece"):
        metric = getattr(metrics, name)
        repeated = [metric(np.repeat(scores, w.astype(int)), np.repeat(labels, w.astype(int))) for w in weights]
        assert metric(scores, labels, weights) == pytest.approx(repeated, rel=1e-5, abs=1e-6)
    assert metrics.auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))
    assert metrics.brier(scores, labels) == pytest.approx(brier_score_loss(labels, scores))


def test_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(0).normal(size=2000)
    value, low, high = metrics.bootstrap(metrics.mean, values, n=4000)
    half = norm.ppf(0.975) * values.std() / np.sqrt(2000)
    assert value == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((value - half, value + half), abs=0.003)


def test_chunks_do_not_change_an_interval(monkeypatch):
    labels, scores = np.arange(50) % 2, np.random.default_rng(1).normal(size=50)
    whole = metrics.bootstrap(metrics.auroc, scores, labels, n=200)
    monkeypatch.setattr(metrics, "CHUNK", 500)
    assert metrics.bootstrap(metrics.auroc, scores, labels, n=200) == pytest.approx(whole)
    monkeypatch.setattr(metrics, "CHUNK", 1)  # less than a row
    assert metrics.bootstrap(metrics.auroc, scores, labels, n=200) == pytest.approx(whole)


def test_rows_of_a_group_are_drawn_together():
    groups = np.repeat(np.arange(10), 20)
    weights = metrics.resamples(200, 50, 0, groups)
    assert (weights.reshape(50, 10, 20) == weights.reshape(50, 10, 20)[..., :1]).all()
    assert (weights.sum(1) == 200).all()
    values = np.repeat(np.random.default_rng(0).normal(size=10), 20)
    alone, together = (metrics.bootstrap(metrics.mean, values, groups=g) for g in (None, groups))
    assert together.high - together.low > 3 * (alone.high - alone.low)


def test_pairing_narrows_the_interval_of_a_difference():
    rng = np.random.default_rng(0)
    a = rng.normal(size=500)
    b = a + 0.1 + 0.05 * rng.normal(size=500)
    value, low, high = metrics.paired_bootstrap(a, b)
    assert value == pytest.approx(0.1, abs=0.01)
    assert 0.09 < low < high < 0.11


def test_mcnemar_is_the_exact_binomial_test():
    a = np.r_[np.ones(1), np.zeros(9), np.ones(50)]
    b = np.r_[np.zeros(1), np.ones(9), np.ones(50)]
    assert metrics.mcnemar(a, b) == pytest.approx(2 * (1 + 10) / 2**10)
    assert metrics.mcnemar(a, a) == 1.0
    assert metrics.mcnemar([0] * 5, [1] * 5) == pytest.approx(2 / 2**5)


def test_holm_by_hand():
    assert metrics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert metrics.holm([0.9, 0.8]) == [1.0, 1.0]
