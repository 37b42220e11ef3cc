"""The verdict's main numbers by independent code: pandas, statsmodels, scikit-learn; nothing of the library.

`recompute` runs the comparison again, which finds a changed file but no mistake in the comparison itself. Here every
value, gain, interval, p-value, agreement and AUROC is computed anew from the samples: clustered intervals and tests by
statsmodels' regressions, McNemar's by its definition.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

CLOSE = 1e-6
NARROW = 1e-9
"""Intervals of the same difference in every group are put together from two others and not computed here."""


def recompute_independently(results: Path) -> tuple[int, list[str]]:
    """Compare summary/verdict.json with the samples; return how many numbers were compared and which ones differ."""
    verdict = json.loads((results / "summary" / "verdict.json").read_text(encoding="utf-8"))
    trainings = {(row["run"], row["seed"]): row for row in verdict["trainings"]}
    checks: list[tuple[str, float, float, float]] = []  # name, stated, found, tolerance
    p_values: dict[tuple, list[tuple[dict, float]]] = {}
    for row in verdict["evaluations"]:
        training = trainings[row["run"], row["seed"]]
        name = f"{row['run']}, seed {row['seed']}, {row['task']}"
        both = _joined(results, training, row["suite"], row["task"])
        for model in ("base", "tuned"):
            checks.append((f"{name}: {model}", row[model], _value(both, model), CLOSE))
        gain = _value(both, "tuned") - _value(both, "base")
        checks.append((f"{name}: difference", row["difference"], gain, CLOSE))
        found = _gain(both, _groups(results, training, row["task"]))
        for key in ("ci_low", "ci_high", "p_value"):
            if found.get(key) is not None and row[key] is not None:
                checks.append((f"{name}: {'p' if key == 'p_value' else key}", row[key], found[key], CLOSE))
        if row["p_value"] is not None:
            p_values.setdefault((row["run"], row["seed"]), []).append((row, found.get("p_value", row["p_value"])))
    for (run, seed), tests in p_values.items():
        for row, corrected in zip([row for row, _ in tests], holm_by_definition([p for _, p in tests]), strict=True):
            checks.append((f"{run}, seed {seed}, {row['task']}: p (Holm)", row["p_holm"], corrected, CLOSE))
    for row in verdict["averages"]:
        own = [e for e in verdict["evaluations"] if all(e[key] == row[key] for key in ("run", "seed", "suite"))]
        for model in ("base", "tuned"):
            plain = sum(each[model] for each in own) / len(own)
            checks.append((f"{row['run']}, seed {row['seed']}, {row['suite']}: {model}", row[model], plain, CLOSE))
    for row in verdict["seeds"]:
        gains = [e["difference"] for e in verdict["evaluations"] if (e["run"], e["task"]) == (row["run"], row["task"])]
        checks.append((f"{row['run']}, {row['task']}: mean gain", row["difference"], float(np.mean(gains)), CLOSE))
        checks += _over_seeds(results, row, [t for t in verdict["trainings"] if t["run"] == row["run"]], verdict)
    for training in verdict["trainings"]:
        checks += _agreement(results, training, verdict)
    checks += _probes(results, verdict)
    wrong = [
        f"{name} is {stated}, independently {found}"
        for name, stated, found, tolerance in checks
        if not math.isclose(stated, found, rel_tol=CLOSE, abs_tol=tolerance)
    ]
    return len(checks), wrong


def _joined(results: Path, training: dict[str, Any], suite: str, task: str) -> pd.DataFrame:
    """The samples of base and tuned model on a task, side by side, joined by part and question."""
    base = results / "evaluations" / "base" / training["policy"] / training["dataset"] / suite
    tuned = results / "evaluations" / "tuned" / training["run"] / f"seed{training['seed']}" / suite
    first, second = (
        pd.read_parquet(folder / "samples.parquet", filters=[("task", "==", task)]) for folder in (base, tuned)
    )
    return first.merge(second, on=["part", "doc_id"], suffixes=("_base", "_tuned"), validate="one_to_one")


def _value(both: pd.DataFrame, model: str) -> float:
    """Plain mean over parts of the weighted mean in each."""
    parts = [
        np.average(part[f"value_{model}"].to_numpy(float), weights=part[f"weight_{model}"].to_numpy(float))
        for _, part in both.groupby("part")
    ]
    return float(np.mean(parts))


def _groups(results: Path, training: dict[str, Any], wording: str) -> dict[str, Any]:
    """Question id to its group; empty for a task without prompts of ours."""
    prompts = results / "prompts" / training["policy"] / training["dataset"] / wording / "val.parquet"
    if not prompts.is_file():
        return {}
    table = pd.read_parquet(prompts, columns=["id", "group"])
    return dict(zip(table["id"].astype(str), table["group"], strict=True))


def _gain(both: pd.DataFrame, groups: dict[str, Any]) -> dict[str, float]:
    """Ends of the gain's interval and its p-value, where they do not rest on linearised values."""
    if both["part"].nunique() > 1 or both["weight_base"].nunique() > 1:
        return {}
    change = (both["value_tuned"] - both["value_base"]).astype(float)
    cluster = both["id_base"].map(groups) if groups else both["id_base"].reset_index().index.to_series()
    found = _mean(change, cluster)
    alone = cluster.nunique() == len(both)
    if alone and both["correct_base"].notna().all() and both["correct_tuned"].notna().all():
        found["p_value"] = _mcnemar(both["correct_base"].astype(bool), both["correct_tuned"].astype(bool))
    return found


def _mean(change: pd.Series, cluster: pd.Series) -> dict[str, float]:
    """Interval and p-value of a mean: a regression on a constant, with errors clustered by group."""
    import statsmodels.api as sm

    codes = pd.factorize(cluster)[0]
    sums = (change - change.mean()).groupby(codes).sum()
    if codes.max() < 1 or float((sums**2).sum()) < NARROW:
        return {}
    kind = {"cov_type": "cluster", "cov_kwds": {"groups": codes, "df_correction": True}, "use_t": True}
    fitted = sm.OLS(change.to_numpy(), np.ones((len(change), 1))).fit(**kind)
    low, high = fitted.conf_int()[0]
    return {"ci_low": float(low), "ci_high": float(high), "p_value": float(fitted.pvalues[0]), "error": fitted.bse[0]}


def _over_seeds(
    results: Path, row: dict[str, Any], trainings: list[dict[str, Any]], verdict: dict[str, Any]
) -> Iterator[tuple]:
    """Ends of the interval over seeds and questions, from their two variances and Student's quantiles."""
    from scipy.stats import t as student

    own = [e for e in verdict["evaluations"] if (e["run"], e["task"]) == (row["run"], row["task"])]
    pairs = [_joined(results, training, own[0]["suite"], row["task"]) for training in trainings]
    if (
        len(pairs) < 2
        or row["ci_low"] is None
        or pairs[0]["part"].nunique() > 1
        or pairs[0]["weight_base"].nunique() > 1
    ):
        return
    table = pd.DataFrame(
        {i: (both["value_tuned"] - both["value_base"]).to_numpy(float) for i, both in enumerate(pairs)},
        index=pairs[0]["id_base"],
    )
    groups = _groups(results, trainings[0], row["task"])
    cluster = table.index.to_series().map(groups) if groups else pd.Series(range(len(table)))
    of_questions = _mean(table.mean(axis=1).reset_index(drop=True), cluster)
    if not of_questions:
        return
    first, second = of_questions["error"] ** 2, float(table.mean().var(ddof=1)) / len(pairs)
    freedom = (cluster.nunique() - 1, len(pairs) - 1)
    half = (first * student.ppf(0.975, freedom[0]) + second * student.ppf(0.975, freedom[1])) / math.sqrt(
        first + second
    )
    for end, sign in (("ci_low", -1), ("ci_high", 1)):
        stated = row["difference"] + sign * half
        yield f"{row['run']}, {row['task']}: {end} over seeds", row[end], stated, CLOSE


def _mcnemar(base: pd.Series, tuned: pd.Series) -> float:
    """Two-sided binomial tail of the discordant pairs, summed term by term, half of the observed term left out."""
    lost, won = int((base & ~tuned).sum()), int((tuned & ~base).sum())
    count = lost + won
    tail = sum(math.comb(count, k) for k in range(min(lost, won) + 1)) - math.comb(count, min(lost, won)) / 2
    return min(1.0, 2 * tail / 2**count) if count else 1.0


def holm_by_definition(p_values: list[float]) -> list[float]:
    """By definition: each corrected value is the largest step at or below its own rank."""
    m = len(p_values)
    ranks = pd.Series(p_values).rank(method="first").astype(int).tolist()
    steps = {rank: min(1.0, (m - rank + 1) * p) for rank, p in zip(ranks, p_values, strict=True)}
    return [max(steps[k] for k in range(1, rank + 1)) for rank in ranks]


def _agreement(results: Path, training: dict[str, Any], verdict: dict[str, Any]) -> Iterator[tuple]:
    """How often base and tuned model give the answer with the highest reward, and the true one."""
    path = results / "rewards" / training["probe"] / training["dataset"] / "val.parquet"
    rewards = pd.read_parquet(path, columns=["id", "rewards", "label"]).astype({"id": str}).set_index("id")
    favourite = rewards["rewards"].map(lambda values: int(np.argmax(values)))
    if training["probe_accuracy"] is not None:
        right = (favourite == rewards["label"])[rewards["label"] >= 0]
        name = f"{training['run']}, seed {training['seed']}: the probe's accuracy"
        yield name, training["probe_accuracy"], float(right.mean()), CLOSE
    for wording, stated in training["agreement"].items():
        if stated is None:
            continue
        suite = next(row["suite"] for row in verdict["evaluations"] if row["task"] == wording)
        both = _joined(results, training, suite, wording)
        probe = both["id_base"].map(favourite).to_numpy()
        for model in ("base", "tuned"):
            said = both[f"prediction_{model}"].to_numpy()
            for judge, answer in (("probe", probe), ("truth", both["label_base"].to_numpy())):
                name = f"{training['run']}, seed {training['seed']}, {wording}: {model} agrees with the {judge}"
                yield name, stated[f"{model}_{judge}"], float(np.mean(said == answer)), CLOSE


def _probes(results: Path, verdict: dict[str, Any]) -> Iterator[tuple]:
    """AUROC by scikit-learn, for probes whose scores hold each counted row once."""
    from sklearn.metrics import roc_auc_score

    for probe in verdict["probes"]:
        folder = results / "probes" / probe["probe"]
        facts = json.loads((folder / "probe.json").read_text(encoding="utf-8"))
        one_row_each = facts.get("ensembling") == "full" or (
            facts.get("ensembling") == "partial" and len(facts.get("wordings", [])) == 1
        )
        if one_row_each and (folder / "scores.parquet").is_file():
            scores = pd.read_parquet(folder / "scores.parquet", columns=["label", "log_odds"])
            area = float(roc_auc_score(scores["label"], scores["log_odds"]))
            yield f"probe {probe['probe']}: AUROC", probe["auroc"], area, CLOSE
