"""Metrics against scikit-learn and against figures worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from elkflow.common import metrics

SCORES = np.array([0.1, 0.4, 0.4, 0.8])
LABELS = np.array([0, 0, 1, 1])


def test_values_by_hand():
    assert metrics.auroc(SCORES, LABELS) == pytest.approx(3.5 / 4)
    assert metrics.accuracy(SCORES, LABELS) == 0.75
    assert metrics.accuracy([0.5, 0.5], [0, 1]) == 0.5 and metrics.accuracy([0.5], [0]) == 1  # undecided is no
    # slices [0.1, 0.2), [0.4, 0.5), [0.8, 0.9): gaps −0.1, (−0.4 + 0.6), 0.2
    assert metrics.ece(SCORES, LABELS) == pytest.approx((0.1 + 0.2 + 0.2) / 4)
    assert metrics.calibrated_accuracy(SCORES - 5, LABELS) == metrics.calibrated_accuracy(SCORES, LABELS)
    assert metrics.calibrated_accuracy([-3, -2, -9, -1], [1, 0, 0, 1]) == 0.5


def test_calibrated_accuracy_calls_as_many_positive_as_there_are():
    scores = [0.9, 0.8, 0.3, 0.1, 0.05]
    assert metrics.calibrated_accuracy(scores, [1, 0, 0, 0, 0]) == 1.0
    assert metrics.calibrated_accuracy(scores, [0, 1, 0, 0, 0]) == pytest.approx(0.6)
    assert metrics.calibrated_accuracy(scores, [0, 0, 1, 1, 1]) == pytest.approx(0.2)


def test_calibrated_accuracy_of_weighted_rows():
    """A row that counts twice is called positive if the middle of its copies comes before the count of positives."""
    weights = np.array([[1, 1, 1, 1], [3, 1, 0, 2], [1, 2, 1, 0]], dtype=np.float32)
    found = metrics.calibrated_accuracy([0.9, 0.8, 0.3, 0.1], [1, 0, 1, 0], weights)
    assert found.tolist() == [0.5, 1.0, 0.75]
    assert metrics.calibrated_accuracy([0.9, 0.8], [0, 1], np.array([[3, 2]], dtype=np.float32)).tolist() == [0.0]


def test_slices_of_the_calibration_error():
    assert metrics.ece([1.0, 0.85], [0, 1]) == pytest.approx((1 + 0.15) / 2)  # 1 belongs to the last of ten
    assert metrics.ece([0.905, 0.99], [1, 0]) == pytest.approx(0.9475 - 0.5)
    assert metrics.ece([0.895, 0.85], [1, 0]) == pytest.approx(0.8725 - 0.5)


def test_one_label_has_no_auroc():
    assert np.isnan(metrics.auroc(SCORES, np.ones(4)))


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=25, deadline=None)
def test_weights_stand_for_repeated_rows(seed, ties):
    rng = np.random.default_rng(seed)
    labels = np.r_[0, 1, rng.integers(0, 2, 30)]
    scores = rng.uniform(size=32).round(1 if ties else 9)
    weights = np.stack([np.r_[1, 1, rng.integers(0, 4, 30)] for _ in range(3)]).astype(np.float32)
    for name in ("auroc", "accuracy", "ece"):
        metric = getattr(metrics, name)
        repeated = [metric(np.repeat(scores, w.astype(int)), np.repeat(labels, w.astype(int))) for w in weights]
        assert metric(scores, labels, weights) == pytest.approx(repeated, rel=1e-5, abs=1e-6)
    assert metrics.auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))


def test_the_difference_of_two_aurocs():
    assert metrics.auroc_difference(SCORES, LABELS, LABELS) == pytest.approx(0.5 / 4)


def test_holm_by_hand():
    assert metrics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert metrics.holm([0.9, 0.8]) == [1.0, 1.0]
