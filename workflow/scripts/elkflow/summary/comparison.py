"""Base against tuned, question by question: differences with intervals and tests, from the samples on disk."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from elkflow.common.errors import UserError
from elkflow.common.files import read_json, read_table
from elkflow.common.metrics import bootstrap, holm, is_share, mcnemar, mean, paired_bootstrap, resamples
from elkflow.summary.plan import Plan, Training

KEYS = ["task", "part", "doc_id"]
FLIPS = 10_000
"""Random sign patterns behind the p-value of a metric that is no accuracy: resolves p down to 0.0001."""


def compare(plan: Plan, results: Path) -> pd.DataFrame:
    """One row for every run, seed and task.

    Columns: run, seed, suite, task, kind (`training` for the wording trained on, `held_out` for its other wordings,
    `general` for everything else), metric, higher_is_better, n, base, base_low, base_high, tuned, tuned_low,
    tuned_high, difference, ci_low, ci_high, p_value, p_holm (over the tasks of one run and seed), within_noise.

    Raises:
        UserError: base and tuned model were not asked the same questions.
    """
    read = lru_cache(maxsize=None)(read_suite)  # base models are shared by many runs
    groups_of = lru_cache(maxsize=None)(group_of)
    rows = []
    for training in plan.trainings():
        tests: list[dict[str, Any]] = []
        for suite, wordings in plan.suites.items():
            base = read(base_folder(results, training, suite))
            tuned = read_suite(tuned_folder(results, training, suite))
            for task, facts in base[0].items():
                kind = "general" if task not in wordings else "training" if task == training.wording else "held_out"
                row = {"run": training.run, "seed": training.seed, "suite": suite, "task": task, "kind": kind}
                first, second = paired(base[1], tuned[1], task)
                groups = first["id"].map(groups_of(questions(results, training, task))) if task in wordings else None
                tests.append(row | _facts(facts) | difference(first, second, groups, plan.resamples))
        for test, corrected in zip(tests, holm([test["p_value"] for test in tests]), strict=True):
            test["p_holm"] = float(corrected)
            test["within_noise"] = bool(corrected > plan.alpha)
        rows += tests
    return pd.DataFrame(rows)


def base_folder(results: Path, training: Training, suite: str) -> Path:
    """Where the untuned policy's answers lie; shared by all runs on this dataset."""
    return results / "evaluations" / "base" / training.policy / training.dataset / suite


def tuned_folder(results: Path, training: Training, suite: str) -> Path:
    """Where the tuned policy's answers lie."""
    return results / "evaluations" / "tuned" / training.run / f"seed{training.seed}" / suite


def questions(results: Path, training: Training, wording: str) -> Path:
    """The prompts of the val split under a wording."""
    return results / "prompts" / training.policy / training.dataset / wording / "val.parquet"


def group_of(prompts: Path) -> dict[str, str]:
    """Question id to its group: questions about one country stand or fall together."""
    table = read_table(prompts, ["id", "group"]).to_pydict()
    return dict(zip(map(str, table["id"]), map(str, table["group"]), strict=True))


def read_suite(folder: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """Results and samples of one suite."""
    columns = [*KEYS, "id", "label", "prediction", "correct", "value", "weight"]
    return read_json(folder / "results.json"), read_table(folder / "samples.parquet", columns).to_pandas()


def _facts(result: dict[str, Any]) -> dict[str, Any]:
    return {"metric": result["metric"], "higher_is_better": result.get("higher_is_better", True)}


def paired(base: pd.DataFrame, tuned: pd.DataFrame, task: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The samples of one task, row by row the same question of both.

    Raises:
        UserError: a question only one of them answered.
    """
    first = base[base["task"] == task].sort_values(KEYS, ignore_index=True)
    second = tuned[tuned["task"] == task].sort_values(KEYS, ignore_index=True)
    if not first[[*KEYS, "id"]].equals(second[[*KEYS, "id"]]):
        questions = [set(map(tuple, table[[*KEYS, "id"]].to_numpy().tolist())) for table in (first, second)]
        odd = sorted(questions[0] ^ questions[1], key=str)
        raise UserError(f"{task}: base and tuned model answered different questions, e.g. {odd[0] if odd else KEYS}")
    return first, second


def difference(
    base: pd.DataFrame, tuned: pd.DataFrame, groups: pd.Series | None = None, n: int = 1000
) -> dict[str, Any]:
    """Both values and their difference on the same questions, with 95 % bootstrap intervals and a paired test.

    The test is McNemar's, exact, where every answer is right or wrong, else a sign-flip permutation test.

    Args:
        groups: group of each question; whole groups are resampled, so that related questions do not pass for
            independent ones.
    """
    first, second = influence(base), influence(tuned)
    found = intervals(first, second, resamples(len(base), n, seed=0, groups=groups))
    if base["correct"].notna().all() and tuned["correct"].notna().all():
        p_value = mcnemar(base["correct"].to_numpy(bool), tuned["correct"].to_numpy(bool))
    else:
        p_value = sign_flip(second - first)
    return {"n": len(base)} | found | {"p_value": float(p_value)}


def intervals(first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Means of two models' numbers on the same questions [N] and their difference, each with its bootstrap interval."""
    base_value, base_low, base_high = bootstrap(mean, first, weights=weights)
    tuned_value, tuned_low, tuned_high = bootstrap(mean, second, weights=weights)
    gain, low, high = paired_bootstrap(first, second, weights=weights)
    return {
        "base": base_value,
        "base_low": base_low,
        "base_high": base_high,
        "tuned": tuned_value,
        "tuned_low": tuned_low,
        "tuned_high": tuned_high,
        "difference": gain,
        "ci_low": low,
        "ci_high": high,
    }


def influence(samples: pd.DataFrame) -> np.ndarray:
    """Numbers, one a question, whose plain mean is the task's value and whose spread gives its error. [N]

    A group of tasks (mmlu) is worth the mean of its parts, whatever their sizes, and bits per byte weighs texts by
    length: linearised, question i of a part of K parts is worth value + N/K · weight share · (x_i − part's mean).
    For one part of equal weights that is x_i itself.
    """
    parts = samples.groupby("part")
    weights = samples["weight"] / parts["weight"].transform("sum")
    shares = (samples["value"] * weights).groupby(samples["part"])
    value = shares.sum().mean()
    deviation = samples["value"] - shares.transform("sum")
    return (value + len(samples) / len(parts) * weights * deviation).to_numpy(float)


def averages(plan: Plan, results: Path) -> pd.DataFrame:
    """One row for every run, seed and suite of two tasks or more that all count right answers; leaderboards rank by it.

    Wordings are no tasks here: what is trained on and what is not have no average. Columns: run, seed, suite, tasks
    (how many), n (questions), and as in `compare` base, tuned, difference and their intervals.
    """
    rows = []
    for training in plan.trainings():
        for suite in (name for name, wordings in plan.suites.items() if not wordings):
            (facts, base), (_, tuned) = (read_suite(f(results, training, suite)) for f in (base_folder, tuned_folder))
            if len(facts) < 2 or not all(is_share(each["metric"]) for each in facts.values()):
                continue
            pairs = [paired(base, tuned, task) for task in facts]
            first, second = (stacked([influence(pair[side]) for pair in pairs]) for side in (0, 1))
            row = {"run": training.run, "seed": training.seed, "suite": suite, "tasks": len(pairs), "n": len(first)}
            rows.append(row | intervals(first, second, resamples(len(first), plan.resamples, seed=0)))
    return pd.DataFrame(rows)


def stacked(tasks: list[np.ndarray]) -> np.ndarray:
    """Numbers, one a question of any task, whose plain mean is the mean of the tasks' values, whatever their sizes. [N]

    Args:
        tasks: each task's `influence`.
    """
    count, value = sum(map(len, tasks)), np.mean([task.mean() for task in tasks])
    return np.concatenate([value + count / len(tasks) / len(task) * (task - task.mean()) for task in tasks])


def sign_flip(differences: np.ndarray, seed: int = 0) -> float:
    """Two-sided p of the mean difference being zero: how often random signs give a mean as far from zero."""
    random = np.random.default_rng(seed)
    observed = abs(differences.sum())
    if not observed:
        return 1.0
    extreme = 0
    for flips in np.array_split(np.arange(FLIPS), 20):
        signs = random.integers(0, 2, (len(flips), len(differences)), dtype=np.int8) * 2 - 1
        extreme += int((np.abs(signs @ differences) >= observed * (1 - 1e-12)).sum())
    return (extreme + 1) / (FLIPS + 1)


def over_seeds(comparison: pd.DataFrame) -> pd.DataFrame:
    """One row for every run and task: mean gain over seeds with its interval, and each seed's gain.

    The interval is Student's over the seeds' gains; of one seed it is that seed's own, over questions.
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
