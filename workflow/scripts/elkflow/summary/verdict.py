"""The verdict: what the model says, what it knows, what the tuned model says, gathered from the stages' files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from elkflow.common.errors import UserError
from elkflow.common.files import read_json, read_table
from elkflow.common.metrics import auroc
from elkflow.summary.comparison import (
    averages,
    base_folder,
    compare,
    group_of,
    over_seeds,
    paired,
    questions,
    read_suite,
    tuned_folder,
)
from elkflow.summary.diagnosis import agreement, exploits, outcome, trend
from elkflow.summary.plan import Plan, Training

FIGURES = ("auroc", "accuracy", "ece", "lead")


def gather(plan: Plan, results: Path) -> dict[str, Any]:
    """The verdict as plain JSON.

    Keys: `evaluations`, a row for every run, seed and task (see `compare.compare`); `averages`, a row for every suite
    that has one (see `compare.averages`); `seeds`, the evaluations over seeds; `probes`, each with its baselines;
    `trainings`, a row for every run and seed with its diagnosis.
    """
    comparison = compare(plan, results)
    probes = [read_probe(results / "probes" / name, name) for name in plan.probes]
    steps = read_steps(plan, results)
    trainings = []
    for training in plan.trainings():
        own = [
            table[(table["run"] == training.run) & (table["seed"] == training.seed)] for table in (comparison, steps)
        ]
        trainings.append(training.model_dump() | diagnose(training, plan, results, *own))
    return {
        "format": 1,
        "evaluations": comparison.to_dict("records"),
        "averages": averages(plan, results).to_dict("records"),
        "seeds": over_seeds(comparison).to_dict("records"),
        "probes": probes,
        "trainings": trainings,
    }


def diagnose(
    training: Training, plan: Plan, results: Path, comparison: pd.DataFrame, steps: pd.DataFrame
) -> dict[str, Any]:
    """What one training did: agreement with probe and truth by wording, trends of reward and gold accuracy, outcome.

    Args:
        comparison, steps: the rows of this run and seed.
    """
    rewards = read_rewards(results / "rewards" / training.probe / training.dataset / "val.parquet")
    choices, labelled = rewards["choice"], rewards[rewards["label"] >= 0]
    whom = {}
    for suite, wordings in plan.suites.items():
        for wording in wordings:
            base, tuned = (read_suite(folder(results, training, suite))[1] for folder in (base_folder, tuned_folder))
            first, second = paired(base, tuned, wording)
            groups = second["id"].map(group_of(questions(results, training, wording)))
            whom[wording] = agreement(first, second, choices, groups, plan.resamples)
    reward, gold = trend(steps["reward"]), trend(steps["gold_of_allowed"])
    trained = comparison[comparison["kind"] == "training"].to_dict("records")
    folder = results / "runs" / training.run / f"seed{training.seed}"
    ended = read_json(folder / "outcome.json")
    probes = None
    if plan.fresh_probe:
        before = float(auroc(labelled["second"].to_numpy(), labelled["label"].to_numpy()))
        probes = read_json(folder / "fresh_probe.json") | {"before": before}
    own = whom.get(training.wording)
    return {
        "steps": int(steps["reward"].notna().sum()),
        "ended": ended["outcome"],
        "kept_step": ended["kept"],
        "reason": ended["reason"],
        "reward_trend": reward.finite(),
        "gold_trend": gold.finite(),
        "gold_ceiling": read_json(results / "rewards" / training.probe / training.dataset / "ppo.manifest.json")[
            "facts"
        ]["gold_ceiling"],
        "probe_accuracy": float((labelled["choice"] == labelled["label"]).mean()) if len(labelled) else None,
        "agreement": whom,
        "probes_after": probes,
        "exploits_probe": exploits(reward, gold, own),
        "outcome": outcome(trained[0], own, valid_at(steps, ended["kept"]), ended["outcome"], probes)
        if trained
        else None,
    }


def valid_at(steps: pd.DataFrame, step: int) -> float:
    """Share of allowed answers at a step; 1 for the untrained policy of step 0, which has no rollout after it."""
    found = steps.loc[steps["step"] == step, "valid"]
    return float(found.iloc[0]) if len(found) else 1.0


def read_rewards(path: Path) -> pd.DataFrame:
    """What a frozen probe holds true of each question.

    Columns: choice, the index of the answer with the highest reward; second, the reward of the second answer; label,
    the index of the right answer, −1 where no one answer is right. Index: the question's id.
    """
    table = read_table(path, ["id", "rewards", "label"]).to_pandas()
    return pd.DataFrame(
        {
            "choice": [int(np.argmax(values)) for values in table["rewards"]],
            "second": [float(values[1]) for values in table["rewards"]],
            "label": table["label"].to_numpy(),
        },
        index=table["id"].astype(str),
    )


def read_probe(folder: Path, name: str) -> dict[str, Any]:
    """One probe's figures on val, with its baselines beside it; `datasets` has those on each member of a mixture."""
    probe = read_json(folder / "probe.json")
    controls = pd.read_csv(folder / "controls.csv")
    datasets = pd.read_csv(folder / "datasets.csv")
    members = datasets[datasets["dataset"] != probe["dataset"]]  # the first row is the whole val split
    figures = _figures(pd.Series(probe["metrics"]))
    return {
        "probe": name,
        "method": probe["method"],
        "layer": probe["layer"],
        "model": probe["model"]["name"],
        "dataset": probe["dataset"],
        "admitted": bool(probe["gate"]["passed"]),
        **figures,
        "baselines": {row["control"]: _figures(row) for _, row in controls.iterrows()},
        "datasets": {row["dataset"]: {"rows": int(row["rows"])} | _figures(row) for _, row in members.iterrows()},
    }


def _figures(row: pd.Series) -> dict[str, float]:
    names = [f"{metric}{end}" for metric in FIGURES for end in ("", "_low", "_high")]
    return {name: float(row[name]) for name in names if name in row and pd.notna(row[name])}


def read_steps(plan: Plan, results: Path) -> pd.DataFrame:
    """Every run's metrics.jsonl, one row a step, with columns run, seed and gold_of_allowed.

    That is the accuracy of the allowed answers: learning to give one at all raises accuracy too, whatever the reward.
    """
    tables = []
    for training in plan.trainings():
        path = results / "runs" / training.run / f"seed{training.seed}" / "metrics.jsonl"
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: not valid JSON lines ({error})") from None
        tables.append(pd.DataFrame(rows).assign(run=training.run, seed=training.seed))
    steps = pd.concat(tables, ignore_index=True)
    return steps.assign(gold_of_allowed=steps["gold_accuracy"] / steps["valid"].where(steps["valid"] > 0))


def read_probe_tables(plan: Plan, results: Path) -> dict[str, pd.DataFrame]:
    """What the probes' figures are drawn from, by name: every probe's table of that name, with a column probe.

    Layers are those of the val rows; transfer is empty where no probe was tested on others.
    """
    probes = {name: results / "probes" / name for name in plan.probes}
    found = {
        name: pd.concat([pd.read_csv(folder / f"{name}.csv").assign(probe=probe) for probe, folder in probes.items()])
        for name in ("layers", "controls", "wordings")
    }
    found["layers"] = found["layers"][found["layers"]["part"] == "val"]
    columns = ["id", "group", "label", "log_odds"]
    scores = [
        read_table(folder / "scores.parquet", columns).to_pandas().assign(probe=probe)
        for probe, folder in probes.items()
    ]
    transfers = [pd.read_csv(probes[probe] / "transfer.csv").assign(probe=probe) for probe in plan.transfer]
    return found | {"scores": pd.concat(scores), "transfer": pd.concat(transfers) if transfers else pd.DataFrame()}


def manifests(plan: Plan, results: Path) -> dict[str, Path]:
    """The manifests behind the verdict, by the folder they describe: where a walk back to the data starts."""
    folders = [results / "probes" / name for name in plan.probes]
    for training in plan.trainings():
        for suite in plan.suites:
            folders += [base_folder(results, training, suite), tuned_folder(results, training, suite)]
    found = {folder.relative_to(results).as_posix(): folder / "manifest.json" for folder in folders}
    for training in plan.trainings() if plan.fresh_probe else ():
        name = f"runs/{training.run}/seed{training.seed}/fresh_probe"
        found[name] = results / f"{name}.manifest.json"
    for run in dict.fromkeys(training.run for training in plan.trainings() if plan.without_rl):
        name = f"evaluations/without_rl/{run}"
        found[name] = results / f"{name}.manifest.json"
    for probe in plan.transfer:
        found[f"probes/{probe}/transfer"] = results / "probes" / probe / "transfer.manifest.json"
    return found


def files_read(plan: Plan, results: Path) -> list[Path]:
    """What the verdict is computed from beyond the outputs of `manifests`: prompts, rewards, and how training went."""
    found = []
    for training in plan.trainings():
        folder = results / "runs" / training.run / f"seed{training.seed}"
        found += [folder / "metrics.jsonl", folder / "outcome.json"]
        found.append(results / "rewards" / training.probe / training.dataset / "val.parquet")
        prompts = results / "prompts" / training.policy / training.dataset
        found += [prompts / wording / "val.parquet" for wordings in plan.suites.values() for wording in wordings]
    return list(dict.fromkeys(found))


def read_without_rl(plan: Plan, results: Path) -> pd.DataFrame:
    """What the reward achieves at test time, without training: the evaluation stage's tables, with a column run."""
    if not plan.without_rl:
        return pd.DataFrame()
    runs = dict.fromkeys(training.run for training in plan.trainings())
    tables = [pd.read_csv(results / "evaluations" / "without_rl" / f"{run}.csv").assign(run=run) for run in runs]
    return pd.concat(tables, ignore_index=True)


def flat_probes(probes: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Probes and baselines as numbers: one row each, `control` empty for the probe itself.

    A probe of a mixture has a row for each `dataset` in it too.
    """
    rows = []
    for probe in probes:
        figures = {key: value for key, value in probe.items() if key not in ("baselines", "datasets")}
        rows.append({"probe": probe["probe"], "control": ""} | figures)
        for name, entry in probe["datasets"].items():
            metrics = {key: value for key, value in entry.items() if key != "rows"}
            rows.append({"probe": probe["probe"], "control": "", "dataset": name} | metrics)
        rows += [{"probe": probe["probe"], "control": name} | entry for name, entry in probe["baselines"].items()]
    return pd.DataFrame(rows)
