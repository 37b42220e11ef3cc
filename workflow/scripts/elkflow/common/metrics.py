"""Metrics of binary predictions, their bootstrap intervals, and paired tests.

Every metric takes `weights` [..., N], how often each row counts, so that one call computes a thousand resamples.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from scipy.stats import binomtest

Weights = NDArray[np.float32] | NDArray[np.float64] | None
CHUNK = 4_000_000  # weights held at a time: 32 MB


class Interval(NamedTuple):
    """A value and the ends of its interval."""

    value: float
    low: float
    high: float


def mean(values: ArrayLike, weights: Weights = None) -> NDArray | float:
    """Weighted mean of `values` [N]."""
    values = np.asarray(values, dtype=float)
    return values.mean() if weights is None else weights @ values.astype(weights.dtype) / weights.sum(-1)


def accuracy(probabilities: ArrayLike, labels: ArrayLike, weights: Weights = None) -> NDArray | float:
    """Fraction of rows whose label [N] (0 or 1) is predicted; a probability of one half predicts 0."""
    return mean((np.asarray(probabilities) > 0.5) == (np.asarray(labels) == 1), weights)


def brier(probabilities: ArrayLike, labels: ArrayLike, weights: Weights = None) -> NDArray | float:
    """Mean squared difference between probability and label (Brier 1950)."""
    return mean((np.asarray(probabilities, dtype=float) - np.asarray(labels, dtype=float)) ** 2, weights)


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


def resamples(rows: int, n: int, seed: int, groups: ArrayLike | None = None) -> NDArray[np.float32]:
    """How often each of `rows` rows occurs in each of `n` bootstrap samples, [n, rows].

    With `groups` [rows], whole groups are drawn, as the rows of a group are not independent.
    """
    generator = np.random.default_rng(seed)
    index = np.arange(rows) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    count = int(index.max()) + 1
    drawn = generator.multinomial(count, np.full(count, 1 / count), size=n).astype(np.float32)
    return drawn.T[index].T  # the memory of a row's counts is contiguous, which ranking metrics profit from


def bootstrap(
    metric: Callable[..., NDArray | float],
    *arrays: ArrayLike,
    n: int = 1000,
    seed: int = 0,
    groups: ArrayLike | None = None,
    weights: Weights = None,
    level: float = 0.95,
) -> Interval:
    """`metric(*arrays)` with its percentile bootstrap interval (Efron 1979).

    Args:
        metric: takes the arrays [N] and keyword `weights` [n, N]; one of this module or of that form.
        groups: see `resamples`.
        weights: resamples to share between calls; replaces n, seed and groups.
    """
    rows = len(np.asarray(arrays[0]))
    weights = resamples(rows, n, seed, groups) if weights is None else weights
    step = max(1, CHUNK // rows)
    values = [metric(*arrays, weights=weights[start : start + step]) for start in range(0, len(weights), step)]
    low, high = np.nanquantile(np.concatenate([np.atleast_1d(v) for v in values]), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(metric(*arrays)), float(low), float(high))


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    *,
    metric: Callable[..., NDArray | float] = mean,
    labels: ArrayLike | None = None,
    n: int = 1000,
    seed: int = 0,
    groups: ArrayLike | None = None,
    weights: Weights = None,
    level: float = 0.95,
) -> Interval:
    """metric(b) − metric(a) with its interval; a and b share their rows, and each resample draws both together.

    Args:
        labels: second argument of `metric`, if it takes one.
    """
    rest = () if labels is None else (labels,)

    def difference(first: ArrayLike, second: ArrayLike, weights: Weights = None) -> NDArray | float:
        return metric(second, *rest, weights=weights) - metric(first, *rest, weights=weights)

    return bootstrap(difference, a, b, n=n, seed=seed, groups=groups, weights=weights, level=level)


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> float:
    """Exact two-sided p-value of two models being equally accurate on the same rows (McNemar 1947).

    Only rows where they differ count: under the null hypothesis, each is right on half of them.
    """
    a, b = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return 1.0 if only_a + only_b == 0 else float(binomtest(only_b, only_a + only_b).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for multiple testing, in the given order (Holm 1979)."""
    order = np.argsort(p_values)
    adjusted = np.empty(len(order))
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted.tolist()


def all_metrics(log_odds: ArrayLike, labels: ArrayLike, weights: NDArray[np.float32]) -> dict[str, Interval]:
    """Every metric of log-odds [N] against labels [N], with intervals from the resamples `weights` [n, N]."""
    log_odds = np.asarray(log_odds, dtype=float)
    probabilities = expit(log_odds)
    return {
        "auroc": bootstrap(auroc, log_odds, labels, weights=weights),
        "accuracy": bootstrap(accuracy, probabilities, labels, weights=weights),
        "calibrated_accuracy": bootstrap(calibrated_accuracy, log_odds, labels, weights=weights),
        "ece": bootstrap(ece, probabilities, labels, weights=weights),
        "brier": bootstrap(brier, probabilities, labels, weights=weights),
    }


def as_columns(metrics: dict[str, Interval]) -> dict[str, float]:
    """`{"auroc": (v, l, h)}` as the columns auroc, auroc_low and auroc_high."""
    return {
        f"{name}{end}": value
        for name, interval in metrics.items()
        for end, value in zip(("", "_low", "_high"), interval, strict=True)
    }


def is_proportion(metric: str) -> bool:
    """Whether a metric is a proportion, to be shown in percent."""
    return metric.startswith(("acc", "mc", "exact_match", "f1"))
