"""Intervals and tests for rows that come in groups, for few rows, and for several training seeds.

Questions about one country stand or fall together, so that groups, not rows, are the independent units: intervals and
p-values come from cluster-robust (CR1) standard errors with Student's t on as many degrees of freedom as there are
groups less one (Cameron & Miller, "A practitioner's guide to cluster-robust inference", 2015). The interval and the
p-value of a number always come from the same method.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.optimize import brentq
from scipy.special import expit, logit
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.proportion import proportion_confint

from elkflow.common.metrics import as_columns, auroc, calibrated_accuracy, ece

LEVEL = 0.95
BLOCKS = 1000
"""Most parts that a jackknife leaves out one after another; more groups are put together at random."""
FEW_ERRORS = 20
"""With fewer errors of the probe nothing can be said about who copies them."""


class Estimate(NamedTuple):
    """A number with the ends of its 95 % interval and the p-value of its being zero (NaN where there is none)."""

    value: float
    low: float
    high: float
    p_value: float = float("nan")


def codes(groups: ArrayLike | None, rows: int) -> NDArray[np.intp]:
    """Number of each row's group, from 0; every row its own group if `groups` is None. [N]"""
    return np.arange(rows) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]


def cluster_mean(values: ArrayLike, groups: ArrayLike | None = None) -> Estimate:
    """Mean of `values` [N] with its cluster-robust t interval, and the p-value of its being zero.

    Fewer than two groups say nothing about the spread: then interval and p-value are NaN. Where every group has the
    same mean, the p-value is that of flipping signs of whole groups, 2 of whose 2^G patterns are as extreme.
    """
    values = np.asarray(values, dtype=float)
    index = codes(groups, len(values))
    if index.max() < 1:
        return Estimate(float(values.mean()), np.nan, np.nan)
    error = cluster_error(values, index)
    value, df = float(values.mean()), int(index.max())
    if error == 0:
        return Estimate(value, value, value, 1.0 if value == 0 else 2.0**-df)
    half = stats.t.ppf((1 + LEVEL) / 2, df) * error
    return Estimate(value, value - half, value + half, float(2 * stats.t.sf(abs(value) / error, df)))


def cluster_error(values: NDArray[np.float64], index: NDArray[np.intp]) -> float:
    """CR1 standard error of the mean of `values` [N] over the groups `index` [N]."""
    sums = np.bincount(index, values - values.mean())
    count = len(sums)
    return float(np.sqrt(count / (count - 1) * (sums**2).sum()) / len(values))


def share(hits: ArrayLike, groups: ArrayLike | None = None) -> Estimate:
    """Share of true entries in `hits` [N], with Wilson's interval at the effective number of rows.

    Rows of a group that agree count for less than independent ones: effective is the number of independent rows that
    would have the share's cluster-robust variance (Korn & Graubard 1998, with Wilson's interval in place of Clopper and
    Pearson's). Where all rows agree it is the number of groups. The quantile is Student's, for few groups.
    A share that is the same in every group, but neither 0 nor 1, is fixed by design: its interval has no width.
    """
    hits = np.asarray(hits, dtype=float)
    index = codes(groups, len(hits))
    value, units = float(hits.mean()), int(index.max()) + 1
    if units < 2:
        return Estimate(value, np.nan, np.nan)
    error = cluster_error(hits, index)
    if 0 < value < 1 and error < 1e-12:
        return Estimate(value, value, value)
    effective = units if error == 0 else value * (1 - value) / error**2
    alpha = 2 * stats.norm.sf(stats.t.ppf((1 + LEVEL) / 2, units - 1))
    low, high = proportion_confint(value * effective, effective, alpha, method="wilson")
    return Estimate(value, float(low), float(high))


def paired_difference(base: ArrayLike, tuned: ArrayLike, groups: ArrayLike | None = None) -> Estimate:
    """Mean of tuned − base on the same rows [N], with interval and p-value.

    `cluster_mean`, with two exceptions. Rows that are right or wrong, each its own group: the p-value is that of
    McNemar's exact test with mid-p, which is nearer to its nominal size than without (Fagerland et al. 2013). A
    difference that is the same in every group shows nothing of its spread: the interval is then put together from those
    of the two shares (MOVER, Zou & Donner 2008).
    """
    base, tuned = np.asarray(base, dtype=float), np.asarray(tuned, dtype=float)
    found = cluster_mean(tuned - base, groups)
    if not _binary(base, tuned) or np.isnan(found.low):
        return found
    if found.low == found.high:
        low, high = _mover(share(base, groups), share(tuned, groups), found.value)
        found = found._replace(low=low, high=high)
    if _each_alone(len(base), groups):
        found = found._replace(p_value=mcnemar_mid_p(base == 1, tuned == 1))
    return found


def paired_method(base: ArrayLike, tuned: ArrayLike, groups: ArrayLike | None = None, rows: str = "questions") -> str:
    """In words, what `paired_difference` does with these rows [N], which the report calls `rows`."""
    base, tuned = np.asarray(base, dtype=float), np.asarray(tuned, dtype=float)
    units = int(codes(groups, len(base)).max()) + 1
    if units < 2:
        return "none: one group"
    if not _each_alone(len(base), groups):
        return f"cluster t, {units} groups"
    return "McNemar mid-p" if _binary(base, tuned) else f"Student t, {units} {rows}"


def _binary(*values: NDArray[np.float64]) -> bool:
    return all(bool(np.isin(each, (0, 1)).all()) for each in values)


def _each_alone(rows: int, groups: ArrayLike | None) -> bool:
    """Whether every row is a group of its own."""
    return groups is None or len(np.unique(np.asarray(groups))) == rows


def _mover(first: Estimate, second: Estimate, difference: float) -> tuple[float, float]:
    low = difference - np.hypot(second.value - second.low, first.high - first.value)
    high = difference + np.hypot(second.high - second.value, first.value - first.low)
    return float(low), float(high)


def mcnemar_mid_p(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Mid-p-value that two answerers of the same independent rows [N] are equally often right (McNemar 1947)."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    count = only_first + only_second
    if not count:
        return 1.0
    fewer = min(only_first, only_second)
    return float(min(1.0, 2 * stats.binom.cdf(fewer, count, 0.5) - stats.binom.pmf(fewer, count, 0.5)))


def over_seeds(differences: ArrayLike, groups: ArrayLike | None = None) -> Estimate:
    """Mean difference over training seeds and questions, generalising over both.

    The variance is that of each question's mean over seeds, clustered, plus the variance of the seeds' means; the
    quantile is the mean of the two Student's quantiles, weighted by the variances (Cochran & Cox 1957). With two or
    three seeds Satterthwaite's degrees of freedom cover too little. One seed generalises over questions alone.

    Args:
        differences: [S, N], of every seed on the same rows.
        groups: of the rows [N].
    """
    differences = np.atleast_2d(np.asarray(differences, dtype=float))
    seeds, rows = differences.shape
    questions = cluster_mean(differences.mean(0), groups)
    if seeds == 1 or np.isnan(questions.low):
        return questions
    index = codes(groups, rows)
    variances = np.array([cluster_error(differences.mean(0), index) ** 2, differences.mean(1).var(ddof=1) / seeds])
    freedom, total = np.array([index.max(), seeds - 1]), variances.sum()
    if total == 0:
        return questions

    def half(alpha: float) -> float:
        return float((stats.t.isf(alpha / 2, freedom) * variances).sum() / np.sqrt(total))

    value = float(differences.mean())
    p_value = brentq(lambda alpha: half(alpha) - abs(value), 1e-12, 1) if 0 < abs(value) < half(1e-12) else 0.0
    return Estimate(value, value - half(1 - LEVEL), value + half(1 - LEVEL), p_value if value else 1.0)


def jackknife(
    metric: Callable[..., NDArray | float],
    *arrays: ArrayLike,
    groups: ArrayLike | None = None,
    log_odds: bool = False,
) -> Estimate:
    """`metric(*arrays)` with a t interval from leaving out one group after another (Quenouille; Tukey 1958).

    Args:
        metric: takes the arrays [N] and keyword `weights` [n, N], as those of `elkflow.common.metrics`.
        log_odds: compute the interval for the metric's log-odds and turn it back, for metrics between 0 and 1 whose
            spread shrinks near the ends, such as AUROC.
    """
    rows = len(np.asarray(arrays[0]))
    index = codes(groups, rows)
    if index.max() >= BLOCKS:
        index = np.random.default_rng(0).permutation(int(index.max()) + 1)[index] % BLOCKS
    count, value = int(index.max()) + 1, float(metric(*arrays))
    if count < 2:
        return Estimate(value, np.nan, np.nan)
    left = np.concatenate(
        [
            np.atleast_1d(metric(*arrays, weights=(index != np.arange(start, min(start + 100, count))[:, None]) * 1.0))
            for start in range(0, count, 100)
        ]
    )
    left = left[np.isfinite(left)]
    if len(left) < 2:
        return Estimate(value, np.nan, np.nan)
    error = np.sqrt((len(left) - 1) / len(left) * ((left - left.mean()) ** 2).sum())
    quantile = stats.t.ppf((1 + LEVEL) / 2, len(left) - 1)
    if log_odds and not 0 < value < 1:
        edge = proportion_confint(value * count, count, 2 * stats.norm.sf(quantile), method="wilson")
        return Estimate(value, float(edge[0]), float(edge[1]))
    if log_odds:
        half = quantile * error / (value * (1 - value))
        return Estimate(value, float(expit(logit(value) - half)), float(expit(logit(value) + half)))
    p_value = float(2 * stats.t.sf(abs(value) / error, len(left) - 1)) if error else float(value == 0)
    return Estimate(value, value - quantile * error, value + quantile * error, p_value)


def calibrated_ece(probabilities: ArrayLike, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Expected calibration error that a perfectly calibrated probe would have on these probabilities [N].

    ECE is biased upwards: even a calibrated probe shows some, and more on fewer rows. Its own interval would say
    nothing, so that this is what an ECE is to be compared with.

    Returns:
        Mean and 95th percentile over labels drawn from the probabilities.
    """
    probabilities = np.asarray(probabilities, dtype=float)
    random = np.random.default_rng(seed)
    found = [float(ece(probabilities, random.random(len(probabilities)) < probabilities)) for _ in range(draws)]
    return float(np.mean(found)), float(np.quantile(found, 0.95))


def errs_with_probe(
    base_wrong: ArrayLike, tuned_wrong: ArrayLike, probe_wrong: ArrayLike, groups: ArrayLike | None = None
) -> Estimate | None:
    """By how much more often training made the model err where the probe errs than where it does not.

    Zero for a policy whose errors have nothing to do with the probe's, or no more than before training; one for a
    policy that copies a probe with which it had nothing in common. From a regression of (tuned wrong − base wrong) on
    probe wrong, with cluster-robust errors; the p-value is one-sided.

    Args:
        base_wrong, tuned_wrong, probe_wrong: [N], 0 or 1.

    Returns:
        None where the probe errs, or does not err, less than `FEW_ERRORS` times: too few to tell.
    """
    probe_wrong = np.asarray(probe_wrong, dtype=float)
    change = np.asarray(tuned_wrong, dtype=float) - np.asarray(base_wrong, dtype=float)
    index = codes(groups, len(change))
    if min(probe_wrong.sum(), (1 - probe_wrong).sum()) < FEW_ERRORS or index.max() < 2:
        return None
    design = np.column_stack([np.ones_like(probe_wrong), probe_wrong])
    fitted = OLS(change, design).fit(cov_type="cluster", cov_kwds={"groups": index}, use_t=True)
    value, error = float(fitted.params[1]), float(fitted.bse[1])
    if error < 1e-12:
        return Estimate(value, value, value, 0.0 if value > 1e-12 else 1.0)
    low, high = (float(end) for end in fitted.conf_int()[1])
    return Estimate(value, low, high, float(stats.t.sf(value / error, index.max())))


def mean_value(values: ArrayLike, groups: ArrayLike | None = None) -> Estimate:
    """The mean of `values` [N] with its interval: `share` where they are zeros and ones, else `cluster_mean`."""
    values = np.asarray(values, dtype=float)
    return share(values, groups) if _binary(values) else cluster_mean(values, groups)


def all_metrics(log_odds: ArrayLike, labels: ArrayLike, groups: ArrayLike | None = None) -> dict[str, float]:
    """Every metric of log-odds [N] against labels [N] as columns, with the ends of its interval.

    ECE has none, but what a calibrated probe would show on these probabilities: `ece_calibrated` and `_high`.
    """
    log_odds, labels = np.asarray(log_odds, dtype=float), np.asarray(labels)
    probabilities = expit(log_odds)
    expected, limit = calibrated_ece(probabilities)
    return (
        as_columns(
            {
                "auroc": jackknife(auroc, log_odds, labels, groups=groups, log_odds=True),
                "accuracy": share((probabilities > 0.5) == (labels == 1), groups),
                "calibrated_accuracy": jackknife(calibrated_accuracy, log_odds, labels, groups=groups),
            }
        )
        | {"ece": float(ece(probabilities, labels)), "ece_calibrated": expected, "ece_calibrated_high": limit}
        | as_columns({"brier": cluster_mean((probabilities - labels) ** 2, groups)})  # Brier 1950
    )
