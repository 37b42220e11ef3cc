"""Base against tuned model, question by question: differences with intervals and paired tests."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from elkflow.common import inference
from elkflow.common.errors import UserError
from elkflow.common.metrics import as_columns, holm, is_proportion
from elkflow.summary.plan import Plan, Training
from elkflow.summary.results import KEYS, base_folder, read_groups, read_suite, tuned_folder, val_prompts


def compare(plan: Plan, results: Path) -> pd.DataFrame:
    """One row per run, seed and task.

    Columns: run, seed, suite, task, kind (`training`: the wording trained on, `held_out`: other wordings of the same
    questions, `general`: everything else), metric, higher_is_better, n, base, base_low, base_high, tuned, tuned_low,
    tuned_high, difference, ci_low, ci_high, p_value, method (of interval and p-value), generalises_over, p_holm (over
    the tasks of one run and seed), within_noise, differing (questions that only one of the models gets right; missing
    for other metrics), can_reject (see `_can_reject`). Intervals and p-values of fewer than two units are NaN.

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
                groups = groups_in(first, groups_of(val_prompts(results, training, task))) if task in wordings else None
                unit = "texts" if facts["metric"] == "bits_per_byte" else "questions"
                tests.append(row | compare_task(first, second, groups, unit))
        rows += _corrected(tests, plan.alpha)
    return pd.DataFrame(rows)


def _corrected(tests: list[dict[str, Any]], alpha: float) -> list[dict[str, Any]]:
    """The tests of one training with Holm's correction; a task without a p-value takes no part in it."""
    known = [test for test in tests if np.isfinite(test["p_value"])]
    for test, corrected in zip(known, holm([test["p_value"] for test in known]), strict=True):
        test["p_holm"] = float(corrected)
    for test in tests:
        test.setdefault("p_holm", float("nan"))
        test["within_noise"] = not test["p_holm"] <= alpha
        test["can_reject"] = _can_reject(test, known, alpha)
    return tests


def _can_reject(test: dict[str, Any], known: list[dict[str, Any]], alpha: float) -> bool:
    """Whether McNemar's test could pass Holm's correction if all differing questions differed in the same direction.

    Its mid-p-value is then 2^−differing. Other tests have no smallest p-value.
    """
    if test["method"] != "McNemar mid-p":
        return bool(np.isfinite(test["p_value"]))
    p_values = [0.5 ** test["differing"] if other is test else other["p_value"] for other in known]
    position = next(index for index, other in enumerate(known) if other is test)
    return bool(holm(p_values)[position] <= alpha)


def groups_in(samples: pd.DataFrame, groups: dict[str, str]) -> np.ndarray:
    """Group of each row of a wording's samples."""
    return samples["id"].map(groups).to_numpy()


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
    base: pd.DataFrame, tuned: pd.DataFrame, groups: np.ndarray | None = None, unit: str = "questions"
) -> dict[str, Any]:
    """Both values and their difference on aligned questions, with 95 % intervals and a paired test.

    See `inference.paired_difference` for what is done with which rows.

    Args:
        groups: group of each question, as related questions are not independent.
        unit: what a row is called.
    """
    right = [samples["correct"] for samples in (base, tuned)]
    differing = int((right[0] != right[1]).sum()) if all(each.notna().all() for each in right) else None
    found = mean_difference(influence(base), influence(tuned), groups, unit)
    return {"n": len(base)} | found | {"differing": differing}


def mean_difference(
    first: np.ndarray, second: np.ndarray, groups: np.ndarray | None = None, unit: str = "questions"
) -> dict[str, Any]:
    """Means of two models' values on the same questions [N] and their difference, with intervals and p-value."""
    models = {"base": inference.mean_value(first, groups), "tuned": inference.mean_value(second, groups)}
    gain = inference.paired_difference(first, second, groups)
    method = inference.paired_method(first, second, groups, unit)
    return as_columns(models) | _gain(gain) | {"method": method, "generalises_over": unit}


def _gain(found: inference.Estimate) -> dict[str, float]:
    return {"difference": found.value, "ci_low": found.low, "ci_high": found.high, "p_value": found.p_value}


def influence(samples: pd.DataFrame) -> np.ndarray:
    """Influence values [N], one per question: their mean is the task's value and their spread gives its error.

    A group of tasks (mmlu) has the mean of its K parts, whatever their sizes, and bits per byte weighs texts by length.
    Linearised, question i contributes value + N/K · relative weight · (x_i − its part's mean), which is x_i itself for
    a single part of equal weights.
    """
    if samples["part"].nunique() == 1 and samples["weight"].nunique() == 1:
        return samples["value"].to_numpy(float)
    parts = samples.groupby("part")
    weights = samples["weight"] / parts["weight"].transform("sum")
    shares = (samples["value"] * weights).groupby(samples["part"])
    value = shares.sum().mean()
    deviation = samples["value"] - shares.transform("sum")
    return (value + len(samples) / len(parts) * weights * deviation).to_numpy(float)


def suite_averages(plan: Plan, results: Path) -> pd.DataFrame:
    """Averages that leaderboards rank by: a row per run, seed and suite of two or more tasks, all of them accuracies.

    Suites of wordings are left out, as a wording trained on and one held out have no common average. Columns: run,
    seed, suite, tasks (their number), n (questions), and as in `compare` base, tuned, difference, intervals and method.
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
            rows.append(row | mean_difference(first, second))
    return pd.DataFrame(rows)


def influence_on_average(tasks: list[np.ndarray]) -> np.ndarray:
    """Influence values [N] of the questions of all tasks: their mean is the mean over tasks, whatever their sizes.

    Args:
        tasks: each task's `influence`.
    """
    count, value = sum(map(len, tasks)), np.mean([task.mean() for task in tasks])
    return np.concatenate([value + count / len(tasks) / len(task) * (task - task.mean()) for task in tasks])


def over_seeds(plan: Plan, results: Path, comparison: pd.DataFrame) -> pd.DataFrame:
    """One row per run and task: the mean gain over seeds with its interval and p-value, and the gain of each seed.

    They come from every seed's difference on every question (see `inference.over_seeds`) and generalise over questions
    and seeds; with one seed they are that seed's own, over questions alone.

    Args:
        comparison: see `compare`.
    """
    rows = []
    for (run, suite, task), seeds in comparison.groupby(["run", "suite", "task"], sort=False):
        first = seeds.iloc[0]
        found, method = {name: first[name] for name in ("difference", "ci_low", "ci_high", "p_value")}, first["method"]
        if len(seeds) > 1:
            trainings = [each for each in plan.trainings() if each.run == run]
            gain, groups = _gain_over_seeds(trainings, str(suite), str(task), task in plan.suites[str(suite)], results)
            units = f", {len(np.unique(groups))} groups" if groups is not None else ""
            found, method = _gain(gain), f"t over questions and seeds{units}, {len(seeds)} seeds"
        rows.append(
            {
                "run": run,
                "task": task,
                "kind": first["kind"],
                "metric": first["metric"],
                "seeds": len(seeds),
                "base": float(seeds["base"].mean()),
                "tuned": float(seeds["tuned"].mean()),
                **found,
                "method": method,
                "generalises_over": first["generalises_over"] + (" and seeds" if len(seeds) > 1 else ""),
                "per_seed": {
                    int(seed): float(gain) for seed, gain in zip(seeds["seed"], seeds["difference"], strict=True)
                },
            }
        )
    return pd.DataFrame(rows)


def between_runs(plan: Plan, results: Path) -> pd.DataFrame:
    """Every run against the first one of the same dataset and wording, on the wording trained on, question by question.

    Columns: run, against, seeds (those that both have), difference, ci_low, ci_high, p_value. Answers of the same seed
    to the same question are paired; see `inference.over_seeds`. Runs whose wording no suite asks have no row.
    """
    runs: dict[tuple[str, ...], dict[str, list[Training]]] = {}
    for training in plan.trainings():
        alike = runs.setdefault((training.policy, training.dataset, training.wording), {})
        alike.setdefault(training.run, []).append(training)
    rows = []
    for (_, _, wording), alike in runs.items():
        suite = next((name for name, wordings in plan.suites.items() if wording in wordings), None)
        if suite is None or len(alike) < 2:
            continue
        first, *others = alike
        reference = _answers_of(alike[first], suite, results)
        groups = read_groups(val_prompts(results, alike[first][0], wording))
        for run in others:
            own = _answers_of(alike[run], suite, results)
            seeds = [seed for seed in own if seed in reference]
            if not seeds:
                continue
            pairs = [pair_samples(reference[seed], own[seed], wording) for seed in seeds]
            differences = np.stack([influence(second) - influence(first) for first, second in pairs])
            found = inference.over_seeds(differences, groups_in(pairs[0][0], groups))
            rows.append({"run": run, "against": first, "seeds": len(seeds)} | _gain(found))
    return pd.DataFrame(rows)


def _answers_of(trainings: list[Training], suite: str, results: Path) -> dict[int, pd.DataFrame]:
    """A run's answers to a suite, by seed."""
    return {each.seed: read_suite(tuned_folder(results, each, suite))[1] for each in trainings}


def _gain_over_seeds(
    trainings: list[Training], suite: str, task: str, wording: bool, results: Path
) -> tuple[inference.Estimate, np.ndarray | None]:
    """The mean gain of a run's seeds on a task, and the groups of its questions."""
    base = read_suite(base_folder(results, trainings[0], suite))[1]
    pairs = [pair_samples(base, read_suite(tuned_folder(results, each, suite))[1], task) for each in trainings]
    groups = groups_in(pairs[0][0], read_groups(val_prompts(results, trainings[0], task))) if wording else None
    before, after = influence(pairs[0][0]), np.stack([influence(tuned) for _, tuned in pairs])
    found = inference.over_seeds(after - before, groups)
    if found.low == found.high and (after == after[0]).all():
        return inference.paired_difference(before, after[0], groups), groups  # all seeds answer alike
    return found, groups
