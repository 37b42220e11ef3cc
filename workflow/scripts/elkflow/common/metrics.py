"""Metrics of binary predictions.

Every metric takes `weights` [..., N], how often each row counts, so that one call leaves out a hundred groups in turn.
Their intervals are in `inference`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Weights = NDArray[np.float32] | NDArray[np.float64] | None


def mean(values: ArrayLike, weights: Weights = None) -> NDArray | float:
    """Weighted mean of `values` [N]."""
    values = np.asarray(values, dtype=float)
    return values.mean() if weights is None else weights @ values.astype(weights.dtype) / weights.sum(-1)


def accuracy(probabilities: ArrayLike, labels: ArrayLike, weights: Weights = None) -> NDArray | float:
    """Fraction of rows whose label [N] (0 or 1) is predicted; a probability of one half predicts 0."""
    return mean((np.asarray(probabilities) > 0.5) == (np.asarray(labels) == 1), weights)


def ece(probabilities: ArrayLike, labels: ArrayLike, weights: Weights = None, bins: int = 10) -> NDArray | float:
    """Expected calibration error over `bins` equal bins of [0, 1] (Naeini et al. 2015, for the positive class)."""
    probabilities = np.asarray(probabilities, dtype=float)
    gap = np.asarray(labels, dtype=float) - probabilities
    slot = np.minimum((probabilities * bins).astype(int), bins - 1)
    gaps = np.zeros((len(gap), bins))
    gaps[np.arange(len(gap)), slot] = gap
    weights = np.ones(len(gap)) if weights is None else weights
    return np.abs(weights @ gaps.astype(weights.dtype)).sum(-1) / weights.sum(-1)


def auroc(scores: ArrayLike, labels: ArrayLike, weights: Weights = None) -> NDArray | float:
    """Probability that a positive row scores above a negative one, ties counting half (Mann & Whitney 1947).

    NaN where one of the labels is absent.
    """
    order, starts = _ranks(scores)
    positive = np.asarray(labels)[order] == 1
    weights = np.ones(len(order)) if weights is None else weights.T[order]  # [N, n]: whole rows move, which is quick
    above = np.where(positive.reshape(-1, *[1] * (weights.ndim - 1)), weights, 0)
    below = weights - above
    if len(starts) < len(order):
        above, below = np.add.reduceat(above, starts), np.add.reduceat(below, starts)
    passed = np.cumsum(below, axis=0) - below / 2
    with np.errstate(invalid="ignore"):
        return np.einsum("i...,i...->...", above, passed) / (above.sum(0) * below.sum(0))


def auroc_difference(
    first: ArrayLike, second: ArrayLike, labels: ArrayLike, weights: Weights = None
) -> NDArray | float:
    """AUROC of the second scores less that of the first, on the same rows."""
    return auroc(second, labels, weights) - auroc(first, labels, weights)


def calibrated_accuracy(scores: ArrayLike, labels: ArrayLike, weights: Weights = None) -> NDArray | float:
    """Accuracy when as many top-scored rows are predicted positive as are positive (`cal_acc` in elk)."""
    order = np.argsort(-np.asarray(scores, dtype=float), kind="stable")
    positive = np.asarray(labels)[order] == 1
    weights = np.ones(len(order)) if weights is None else weights.T[order]
    positive = positive.reshape(-1, *[1] * (weights.ndim - 1))
    middle = np.cumsum(weights, axis=0, dtype=np.float64) - weights / 2
    called = middle < np.where(positive, weights, 0).sum(0)
    return np.where(called == positive, weights, 0).sum(0) / weights.sum(0)


def _ranks(scores: ArrayLike) -> tuple[NDArray, NDArray]:
    """Indices that sort `scores`, and where each run of equal scores starts in that order."""
    scores = np.asarray(scores, dtype=float)
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    return order, np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for multiple testing, in the given order (Holm 1979)."""
    order = np.argsort(p_values)
    adjusted = np.empty(len(order))
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted.tolist()


def as_columns(metrics: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """`{"auroc": (v, l, h)}` as the columns auroc, auroc_low and auroc_high; what follows the three is left out."""
    return {
        f"{name}{end}": value
        for name, interval in metrics.items()
        for end, value in zip(("", "_low", "_high"), interval, strict=False)
    }


def is_proportion(metric: str) -> bool:
    """Whether a metric is a proportion, to be shown in percent."""
    return metric.startswith(("acc", "mc", "exact_match", "f1"))
