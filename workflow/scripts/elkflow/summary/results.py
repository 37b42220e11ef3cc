"""What the stages left behind, as the summary reads it: answers, rewards, training steps, probes, manifests."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from elkflow.common.errors import UserError
from elkflow.common.files import read_json, read_table
from elkflow.summary.plan import Plan, Training

KEYS = ["task", "part", "doc_id"]
"""Columns that identify a question among a suite's samples."""
PROBE_METRICS = ("auroc", "accuracy", "ece", "ece_calibrated", "lead")


def base_folder(results: Path, training: Training, suite: str) -> Path:
    """Folder of the base policy's answers, shared by all runs on this dataset."""
    return results / "evaluations" / "base" / training.policy / training.dataset / suite


def tuned_folder(results: Path, training: Training, suite: str) -> Path:
    """Folder of the tuned policy's answers."""
    return results / "evaluations" / "tuned" / training.run / f"seed{training.seed}" / suite


def run_folder(results: Path, training: Training) -> Path:
    """Folder of one run and seed."""
    return results / "runs" / training.run / f"seed{training.seed}"


def val_prompts(results: Path, training: Training, wording: str) -> Path:
    """The prompts of the val split under a wording."""
    return results / "prompts" / training.policy / training.dataset / wording / "val.parquet"


def reward_file(results: Path, training: Training, name: str) -> Path:
    """A file of the reward table that the policy was trained on."""
    return results / "rewards" / training.probe / training.dataset / name


def read_suite(folder: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """Results and samples of a suite."""
    columns = [*KEYS, "id", "label", "prediction", "correct", "value", "weight"]
    return read_json(folder / "results.json"), read_table(folder / "samples.parquet", columns).to_pandas()


def read_groups(prompts: Path) -> dict[str, str]:
    """Question id to its group."""
    table = read_table(prompts, ["id", "group"]).to_pydict()
    return dict(zip(map(str, table["id"]), map(str, table["group"]), strict=True))


def read_rewards(path: Path) -> pd.DataFrame:
    """The probe's judgement of each question, indexed by question id.

    Columns: choice, the index of the answer with the highest reward; second, the reward of the second answer; rewards,
    of every answer; label, the index of the right answer, −1 where not exactly one answer is right.
    """
    table = read_table(path, ["id", "rewards", "label"]).to_pandas()
    return pd.DataFrame(
        {
            "choice": [int(np.argmax(values)) for values in table["rewards"]],
            "second": [float(values[1]) for values in table["rewards"]],
            "rewards": list(table["rewards"]),
            "label": table["label"].to_numpy(),
        },
        index=table["id"].astype(str),
    )


def read_steps(plan: Plan, results: Path) -> pd.DataFrame:
    """Every run's metrics.jsonl, one row per step, with columns run, seed and gold_of_allowed.

    `gold_of_allowed` is the accuracy among allowed answers: plain accuracy also rises when the policy merely learns to
    give an allowed answer, whatever the reward.

    Raises:
        UserError: a file is missing or not valid JSON lines.
    """
    tables = []
    for training in plan.trainings():
        path = run_folder(results, training) / "metrics.jsonl"
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: not valid JSON lines ({error})") from None
        tables.append(pd.DataFrame(rows).assign(run=training.run, seed=training.seed))
    steps = pd.concat(tables, ignore_index=True)
    return steps.assign(gold_of_allowed=steps["gold_accuracy"] / steps["valid"].where(steps["valid"] > 0))


def read_without_rl(plan: Plan, results: Path) -> pd.DataFrame:
    """Baselines without reinforcement learning: the evaluation's tables, with a column run; empty if not planned."""
    if not plan.without_rl:
        return pd.DataFrame()
    runs = dict.fromkeys(training.run for training in plan.trainings())
    tables = [pd.read_csv(results / "evaluations" / "without_rl" / f"{run}.csv").assign(run=run) for run in runs]
    return pd.concat(tables, ignore_index=True)


def read_probe(folder: Path, name: str) -> dict[str, Any]:
    """A probe's metrics on val and those of its baselines; `datasets` has its metrics on each member of a mixture."""
    probe = read_json(folder / "probe.json")
    controls = pd.read_csv(folder / "controls.csv")
    datasets = pd.read_csv(folder / "datasets.csv")
    members = datasets[datasets["dataset"] != probe["dataset"]]  # the first row is the whole val split
    return {
        "probe": name,
        "method": probe["method"],
        "layer": probe["layer"],
        "model": probe["model"]["name"],
        "dataset": probe["dataset"],
        "arm": probe.get("arm"),
        "admitted": bool(probe["gate"]["passed"]),
        **_probe_metrics(probe["metrics"]),
        "baselines": {row["control"]: _probe_metrics(row) for _, row in controls.iterrows()},
        "datasets": {row["dataset"]: {"rows": int(row["rows"])} | _probe_metrics(row) for _, row in members.iterrows()},
    }


def _probe_metrics(row: Any) -> dict[str, float]:
    """The metrics in `row` with their intervals; missing ones are left out."""
    names = [f"{metric}{end}" for metric in PROBE_METRICS for end in ("", "_low", "_high")]
    return {name: float(row[name]) for name in names if name in row and pd.notna(row[name])}


def read_probe_tables(plan: Plan, results: Path) -> dict[str, pd.DataFrame]:
    """The tables behind the probe charts: layers (of val), controls, wordings, scores and transfer.

    Each holds all probes, named in the column probe; transfer is empty where no probe was tested on others.
    """
    probes = {name: results / "probes" / name for name in plan.probes}
    tables = {
        name: pd.concat([pd.read_csv(folder / f"{name}.csv").assign(probe=probe) for probe, folder in probes.items()])
        for name in ("layers", "controls", "wordings")
    }
    tables["layers"] = tables["layers"][tables["layers"]["part"] == "val"]
    columns = ["id", "group", "label", "log_odds"]
    scores = [
        read_table(folder / "scores.parquet", columns).to_pandas().assign(probe=probe)
        for probe, folder in probes.items()
    ]
    transfers = [pd.read_csv(probes[probe] / "transfer.csv").assign(probe=probe) for probe in plan.transfer]
    return tables | {"scores": pd.concat(scores), "transfer": pd.concat(transfers) if transfers else pd.DataFrame()}


def probe_table(probes: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Metrics of probes and baselines, one row each; `control` is empty for the probe itself.

    A probe of a mixture also has a row for each `dataset` in it.
    """
    rows = []
    for probe in probes:
        own = {key: value for key, value in probe.items() if key not in ("baselines", "datasets")}
        rows.append({"probe": probe["probe"], "control": ""} | own)
        for name, entry in probe["datasets"].items():
            metrics = {key: value for key, value in entry.items() if key != "rows"}
            rows.append({"probe": probe["probe"], "control": "", "dataset": name} | metrics)
        rows += [{"probe": probe["probe"], "control": name} | entry for name, entry in probe["baselines"].items()]
    return pd.DataFrame(rows)


def manifest_files(plan: Plan, results: Path) -> dict[str, Path]:
    """The manifests behind the verdict, by the artefact they describe: where verification starts."""
    folders = [results / "probes" / name for name in plan.probes]
    for training in plan.trainings():
        for suite in plan.suites:
            folders += [base_folder(results, training, suite), tuned_folder(results, training, suite)]
    files = {folder.relative_to(results).as_posix(): folder / "manifest.json" for folder in folders}
    names = []
    if plan.fresh_probe:
        names += [f"runs/{training.run}/seed{training.seed}/fresh_probe" for training in plan.trainings()]
    if plan.without_rl:
        names += dict.fromkeys(f"evaluations/without_rl/{training.run}" for training in plan.trainings())
    names += [f"probes/{probe}/transfer" for probe in plan.transfer]
    return files | {name: results / f"{name}.manifest.json" for name in names}


def input_files(plan: Plan, results: Path) -> list[Path]:
    """What the verdict is computed from, beyond the outputs of `manifest_files`: prompts, rewards, training logs."""
    files = []
    for training in plan.trainings():
        files += [run_folder(results, training) / name for name in ("metrics.jsonl", "outcome.json")]
        files.append(reward_file(results, training, "val.parquet"))
        files += [val_prompts(results, training, wording) for wordings in plan.suites.values() for wording in wordings]
    return list(dict.fromkeys(files))
