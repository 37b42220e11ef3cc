"""A results folder as the stages would leave it, without any model: made-up answers with known counts."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from elkflow.common.files import write_json, write_table
from elkflow.common.manifests import write_manifest
from elkflow.report.charts import styled
from elkflow.summary.plan import Plan

PLAN = Plan.model_validate(
    {
        "groups": [
            {"runs": ["r"], "policy": "m", "probe": "p", "dataset": "d", "wording": "training", "seeds": [0, 1]}
        ],
        "suites": {"target": ["training", "held_out"], "control": []},
        "probes": ["p"],
    }
)
QUESTIONS = 60


def samples(task, correct=None, values=None, parts=None, weights=None):
    """Answers to one task: right or wrong as `correct` says, or with a metric's `values`."""
    n = len(correct if values is None else values)
    right = [None] * n if values is not None else [bool(c) for c in correct]
    labels = [i % 2 for i in range(n)]
    chosen = (
        [None] * n
        if values is not None
        else [label if c else 1 - label for label, c in zip(labels, right, strict=True)]
    )
    return pd.DataFrame(
        {
            "task": task,
            "part": parts or [task] * n,
            "doc_id": range(n),
            "id": [f"q{i}" for i in range(n)],
            "label": pd.array(labels, dtype="Int64"),
            "prediction": pd.array(chosen, dtype="Int64"),
            "correct": pd.array(right, dtype="boolean"),
            "value": np.array(values if values is not None else correct, dtype=float),
            "weight": np.array(weights or [1.0] * n),
            "scores": [[-0.5, -1.0]] * n,
        }
    )


def write_suite(folder: Path, tables: list[pd.DataFrame], metric="acc", inputs=None):
    results = {
        table["task"].iloc[0]: {
            "metric": metric,
            "n": len(table),
            "value": float(table["value"].mean()),
            "stderr": 0.1,
            "higher_is_better": metric != "bits_per_byte",
        }
        for table in tables
    }
    write_json(folder / "results.json", results)
    write_table(pd.concat(tables, ignore_index=True), folder / "samples.parquet")
    made(folder, "results.json", "samples.parquet", inputs=inputs or [])


def made(folder: Path, *outputs: str, inputs: list[Path], name: str = "manifest.json", **facts) -> Path:
    """A manifest for files of `folder`."""
    files = {output: folder / output for output in outputs}
    write_manifest(folder / name, outputs=files, inputs={str(path): path for path in inputs}, seed=0, **facts)
    return folder / name


def write_results(results: Path) -> None:
    """Run r on model m and probe p: base at one half, seed 0 all right, seed 1 nine in ten; wordings and a control.

    The probe errs on the first six questions.
    """
    ids = [f"q{i}" for i in range(QUESTIONS)]
    rows = {"id": ids, "group": [f"g{i // 2}" for i in range(QUESTIONS)], "label": [0, 1] * (QUESTIONS // 2)}
    data = write_splits(results / "data/d", pd.DataFrame(rows))
    (results / "models/m/checkpoint").mkdir(parents=True)
    (results / "models/m/checkpoint/config.json").write_text("{}")
    model = made(results / "models/m", "checkpoint", inputs=[])
    for wording in ("training", "held_out"):
        write_table(pd.DataFrame(rows), results / f"prompts/m/d/{wording}/val.parquet")
        made(results / f"prompts/m/d/{wording}", "val.parquet", inputs=[data, model])
    prompts = results / "prompts/m/d/training/val.parquet"
    write_probe(results / "probes/p", [prompts, model])
    rewards = [[0.9, 0.1] if i % 2 == 0 else [0.2, 0.8] for i in range(QUESTIONS)]
    rewards[:6] = [pair[::-1] for pair in rewards[:6]]
    write_table(
        pd.DataFrame({"id": ids, "rewards": rewards, "label": rows["label"]}), results / "rewards/p/d/val.parquet"
    )
    made(
        results / "rewards/p/d",
        "val.parquet",
        inputs=[results / "probes/p/manifest.json", prompts],
        name="val.manifest.json",
    )
    ceiling = {"value": 0.9, "low": 0.85, "high": 0.95}
    made(results / "rewards/p/d", inputs=[], name="ppo.manifest.json", gold_ceiling=ceiling)
    write_suite(
        results / "evaluations/base/m/d/target",
        [samples("training", [0] * 30 + [1] * 30), samples("held_out", [1, 0] * 30)],
        inputs=[model, prompts],
    )
    write_suite(results / "evaluations/base/m/d/control", [samples("cloze", [1, 0, 1, 0])], inputs=[model])
    for seed, right in ((0, 60), (1, 54)):
        folder = results / f"runs/r/seed{seed}"
        folder.mkdir(parents=True)
        steps = [
            {
                "step": i,
                "reward": 0.5 + 0.05 * i,
                "gold_accuracy": 0.5 + 0.04 * i,
                "valid": 1.0,
                "yes_rate": 0.5,
                "entropy": 0.6 - 0.05 * i,
                "kl_k3": 0.1 * i,
                "seconds": 2.0,
                "value": 0.4,
            }
            for i in range(10)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
        write_json(folder / "outcome.json", {"outcome": "finished", "kept": 8, "reason": ""})
        run = made(folder, "metrics.jsonl", "outcome.json", inputs=[results / "rewards/p/d/val.manifest.json"])
        folder = results / f"evaluations/tuned/r/seed{seed}"
        tuned = [samples("training", [1] * right + [0] * (60 - right)), samples("held_out", [1, 0] * 30)]
        write_suite(folder / "target", tuned, inputs=[run, prompts])
        write_suite(folder / "control", [samples("cloze", [1, 1, 1, 0])], inputs=[run])


def write_splits(folder: Path, val: pd.DataFrame) -> Path:
    """Split files around the val rows, and their manifest."""
    files, splits = {}, {}
    for name in ("train", "ppo", "val"):
        own = "" if name == "val" else f"{name}-"
        table = val.assign(id=own + val["id"], group=own + val["group"])
        files[name] = folder / f"{name}.parquet"
        write_table(table, files[name])
        labels = {"No": len(table) // 2, "Yes": len(table) // 2}
        splits[name] = {"rows": len(table), "groups": table["group"].nunique(), "labels": labels}
    settings = {"labels": ["No", "Yes"]}
    write_manifest(folder / "manifest.json", outputs=files, inputs={}, settings=settings, seed=0, splits=splits)
    return folder / "manifest.json"


def drawn(chart):
    """Every row of data in a chart."""
    return [row for table in styled(chart).to_dict()["datasets"].values() for row in table if row]


def figures(auroc, accuracy):
    return {
        "auroc": auroc,
        "auroc_low": auroc - 0.02,
        "auroc_high": min(1, auroc + 0.02),
        "accuracy": accuracy,
        "accuracy_low": accuracy - 0.02,
        "accuracy_high": accuracy + 0.02,
    }


def write_probe(folder: Path, inputs: list[Path]) -> None:
    folder.mkdir(parents=True)
    probe = {"method": "logistic", "layer": 2, "metrics": figures(0.97, 0.9), "model": {"name": "m"}, "dataset": "d"}
    write_json(folder / "probe.json", probe | {"gate": {"passed": True}})
    rows = [
        {"method": method, "layer": layer, "part": part, **figures(0.5 + best * layer, 0.5 + best * layer)}
        for method, best in (("logistic", 0.15), ("ccs", 0.1))
        for layer in range(4)
        for part in ("selection", "val")
    ]
    pd.DataFrame(rows).to_csv(folder / "layers.csv", index=False)
    controls = [{"control": "majority", "auroc": 0.5, "accuracy": 0.5}, {"control": "zero_shot", **figures(0.51, 0.5)}]
    pd.DataFrame(controls).to_csv(folder / "controls.csv", index=False)
    pd.DataFrame([{"wording": "training", **figures(0.97, 0.93)}]).to_csv(folder / "wordings.csv", index=False)
    rows = range(QUESTIONS)
    # 27 of 900 pairs of a true and a false row are ranked wrongly (AUROC 0.97), six of 60 rows judged wrongly
    odds = [1.5 - 1.6 * (row % 2) if row < 6 else -3.0 if row % 2 == 0 else 1.0 if row < 18 else 3.0 for row in rows]
    scores = {"id": [f"q{row}" for row in rows], "group": [f"g{row // 2}" for row in rows], "log_odds": odds}
    write_table(pd.DataFrame(scores | {"label": [row % 2 for row in rows]}), folder / "scores.parquet")
    write_members(folder, {"d": figures(0.97, 0.93)}, inputs)


def write_members(folder: Path, members: dict[str, dict[str, float]], inputs: list[Path]) -> None:
    """The probe's figures on its whole dataset and then, of a mixture, on each dataset in it; and its manifest."""
    rows = [{"dataset": name, "rows": QUESTIONS, **metrics} for name, metrics in members.items()]
    pd.DataFrame(rows).to_csv(folder / "datasets.csv", index=False)
    tables = ("layers.csv", "controls.csv", "datasets.csv", "wordings.csv", "scores.parquet")
    made(folder, "probe.json", *tables, inputs=inputs)


def sweep_table():
    """A sweep of four trainings with different outcomes, as `table_rows.sweep_rows` gives it."""
    coefficients = [0.0, 0.02, 0.1, 1.0]
    return pd.DataFrame(
        {
            "run": [f"kl+coefficient={c}" for c in coefficients],
            "seed": 0,
            "outcome": ["collapsed", "overfits the probe", "honest", "unchanged"],
            "training_difference": [0.0, 0.1, 0.4, 0.01],
            "training_ci_low": [-0.05, 0.05, 0.35, -0.02],
            "training_ci_high": [0.05, 0.15, 0.45, 0.04],
            "agrees_truth": [0.5, 0.6, 0.9, 0.52],
            "agrees_probe": [0.5, 0.95, 0.92, 0.51],
        }
    )
