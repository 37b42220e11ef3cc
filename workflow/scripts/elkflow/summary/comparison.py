"""Base against tuned model, question by question: differences with intervals and paired tests."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from elkflow.common.errors import UserError
from elkflow.common.metrics import (
    as_columns,
    bootstrap,
    holm,
    is_proportion,
    mcnemar,
    mean,
    paired_bootstrap,
    resamples,
)
from elkflow.summary.plan import Plan
from elkflow.summary.results import KEYS, base_folder, read_groups, read_suite, tuned_folder, val_prompts

SIGN_FLIPS = 10_000
"""Random sign patterns of the permutation test, which resolves p-values down to 0.0001."""


def compare(plan: Plan, results: Path) -> pd.DataFrame:
    """One row per run, seed and task.

    Columns: run, seed, suite, task, kind (`training`: the wording trained on, `held_out`: other wordings of the same
    questions, `general`: everything else), metric, higher_is_better, n, base, base_low, base_high, tuned, tuned_low,
    tuned_high, difference, ci_low, ci_high, p_value, p_holm (over the tasks of one run and seed), within_noise.

    Raises:
        UserError: base and tuned model were asked different questions.
    """
    read = lru_cache(maxsize=None)(read_suite)  # base models are shared by many runs
    groups_of = lru_cache(maxsize=None)(read_groups)
    rows = []
    for training in plan.trainings():
        tests: list[dict[str, Any]] = []
        for suite, wordings in plan.suites.items():
            base = read(base_folder(results, training, suite))
            tuned = read_suite(tuned_folder(results, training, suite))
            for task, facts in base[0].items():
                kind = "general" if task not in wordings else "training" if task == training.wording else "held_out"
                row = {"run": training.run, "seed": training.seed, "suite": suite, "task": task, "kind": kind}
                row |= {"metric": facts["metric"], "higher_is_better": facts.get("higher_is_better", True)}
                first, second = pair_samples(base[1], tuned[1], task)
                groups = first["id"].map(groups_of(val_prompts(results, training, task))) if task in wordings else None
                tests.append(row | compare_task(first, second, groups, plan.resamples))
        for test, corrected in zip(tests, holm([test["p_value"] for test in tests]), strict=True):
            test["p_holm"] = float(corrected)
            test["within_noise"] = bool(corrected > plan.alpha)
        rows += tests
    return pd.DataFrame(rows)


def pair_samples(base: pd.DataFrame, tuned: pd.DataFrame, task: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The samples of a task, aligned so that each row is the same question in both.

    Raises:
        UserError: only one of them answered a question.
    """
    first = base[base["task"] == task].sort_values(KEYS, ignore_index=True)
    second = tuned[tuned["task"] == task].sort_values(KEYS, ignore_index=True)
    if not first[[*KEYS, "id"]].equals(second[[*KEYS, "id"]]):
        questions = [set(map(tuple, table[[*KEYS, "id"]].to_numpy().tolist())) for table in (first, second)]
        odd = sorted(questions[0] ^ questions[1], key=str)
        raise UserError(f"{task}: base and tuned model answered different questions, e.g. {odd[0] if odd else KEYS}")
    return first, second


def compare_task(
    base: pd.DataFrame, tuned: pd.DataFrame, groups: pd.Series | None = None, n: int = 1000
) -> dict[str, Any]:
    """Both values and their difference on aligned questions, with 95 % bootstrap intervals and a paired test.

    The test is McNemar's exact test where every answer is right or wrong, else a sign-flip permutation test.

    Args:
        groups: group of each question; whole groups are resampled, as related questions are not independent.
    """
    first, second = influence(base), influence(tuned)
    found = mean_difference(first, second, resamples(len(base), n, seed=0, groups=groups))
    if base["correct"].notna().all() and tuned["correct"].notna().all():
        p_value = mcnemar(base["correct"].to_numpy(bool), tuned["correct"].to_numpy(bool))
    else:
        p_value = sign_flip_test(second - first)
    return {"n": len(base)} | found | {"p_value": float(p_value)}


def mean_difference(first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Means of two models' values on the same questions [N] and their difference, with bootstrap intervals.

    Args:
        weights: resamples [n, N], see `metrics.resamples`.
    """
    models = {"base": bootstrap(mean, first, weights=weights), "tuned": bootstrap(mean, second, weights=weights)}
    gain, low, high = paired_bootstrap(first, second, weights=weights)
    return as_columns(models) | {"difference": gain, "ci_low": low, "ci_high": high}


def influence(samples: pd.DataFrame) -> np.ndarray:
    """Influence values [N], one per question: their mean is the task's value and their spread gives its error.

    A group of tasks (mmlu) has the mean of its K parts, whatever their sizes, and bits per byte weighs texts by length.
    Linearised, question i contributes value + N/K · relative weight · (x_i − its part's mean), which is x_i itself for
    a single part of equal weights.
    """
    parts = samples.groupby("part")
    weights = samples["weight"] / parts["weight"].transform("sum")
    shares = (samples["value"] * weights).groupby(samples["part"])
    value = shares.sum().mean()
    deviation = samples["value"] - shares.transform("sum")
    return (value + len(samples) / len(parts) * weights * deviation).to_numpy(float)


def suite_averages(plan: Plan, results: Path) -> pd.DataFrame:
    """Averages that leaderboards rank by: a row per run, seed and suite of two or more tasks, all of them accuracies.

    Suites of wordings are left out, as a wording trained on and one held out have no common average. Columns: run,
    seed, suite, tasks (their number), n (questions), and as in `compare` base, tuned, difference and intervals.
    """
    rows = []
    for training in plan.trainings():
        for suite in (name for name, wordings in plan.suites.items() if not wordings):
            (facts, base), (_, tuned) = (read_suite(f(results, training, suite)) for f in (base_folder, tuned_folder))
            if len(facts) < 2 or not all(is_proportion(each["metric"]) for each in facts.values()):
                continue
            pairs = [pair_samples(base, tuned, task) for task in facts]
            first, second = (influence_on_average([influence(pair[side]) for pair in pairs]) for side in (0, 1))
            row = {"run": training.run, "seed": training.seed, "suite": suite, "tasks": len(pairs), "n": len(first)}
            rows.append(row | mean_difference(first, second, resamples(len(first), plan.resamples, seed=0)))
    return pd.DataFrame(rows)


def influence_on_average(tasks: list[np.ndarray]) -> np.ndarray:
    """Influence values [N] of the questions of all tasks: their mean is the mean over tasks, whatever their sizes.

    Args:
        tasks: each task's `influence`.
    """
    count, value = sum(map(len, tasks)), np.mean([task.mean() for task in tasks])
    return np.concatenate([value + count / len(tasks) / len(task) * (task - task.mean()) for task in tasks])


def sign_flip_test(differences: np.ndarray, seed: int = 0) -> float:
    """Two-sided p-value of a zero mean difference: how often random signs give a mean as far from zero."""
    random = np.random.default_rng(seed)
    observed = abs(differences.sum())
    if not observed:
        return 1.0
    extreme = 0
    for flips in np.array_split(np.arange(SIGN_FLIPS), 20):
        signs = random.integers(0, 2, (len(flips), len(differences)), dtype=np.int8) * 2 - 1
        extreme += int((np.abs(signs @ differences) >= observed * (1 - 1e-12)).sum())
    return (extreme + 1) / (SIGN_FLIPS + 1)


def over_seeds(comparison: pd.DataFrame) -> pd.DataFrame:
    """One row per run and task: the mean gain over seeds with its interval, and the gain of each seed.

    The interval is Student's t over the seeds' gains; with one seed it is that seed's own, over questions.
    """
    from scipy.stats import t as student

    rows = []
    for (run, task), seeds in comparison.groupby(["run", "task"], sort=False):
        gains = seeds["difference"].to_numpy()
        low, high = seeds["ci_low"].iloc[0], seeds["ci_high"].iloc[0]
        if len(gains) > 1:
            half = student.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains))
            low, high = gains.mean() - half, gains.mean() + half
        rows.append(
            {
                "run": run,
                "task": task,
                "kind": seeds["kind"].iloc[0],
                "metric": seeds["metric"].iloc[0],
                "seeds": len(gains),
                "base": float(seeds["base"].mean()),
                "tuned": float(seeds["tuned"].mean()),
                "difference": float(gains.mean()),
                "ci_low": float(low),
                "ci_high": float(high),
                "per_seed": {int(s): float(g) for s, g in zip(seeds["seed"], gains, strict=True)},
            }
        )
    return pd.DataFrame(rows)
