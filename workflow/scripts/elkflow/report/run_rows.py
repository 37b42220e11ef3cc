"""Runs side by side: a row per run, means over its seeds, for comparing algorithms and rewards."""

from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

from elkflow.report import formatting
from elkflow.report.formatting import p_value, signed, value
from elkflow.report.table_rows import gain

Number = float | None


def run_rows(verdict: dict[str, Any]) -> list[dict[str, str]]:
    """One row per run with at least one column for every kind of evidence that any of the runs has.

    Gains are over seeds with their intervals (see `seeds` of the verdict), everything else is a mean over seeds.
    """
    trainings: dict[str, list[dict[str, Any]]] = {}
    for training in verdict["trainings"]:
        trainings.setdefault(training["run"], []).append(training)
    against = {row["run"]: row for row in verdict.get("between", [])}
    rows = []
    for run, own in trainings.items():
        tasks = [row for row in verdict["seeds"] if row["run"] == run]
        row = {"run": run, "seeds": str(len(own))}
        for task in sorted(tasks, key=lambda row: ("training", "held_out", "general").index(row["kind"])):
            if task["kind"] == "training":
                row["says"] = value(task["tuned"], task["metric"])
                if len(own) > 1:
                    ends = [task["base"] + find(task["per_seed"].values()) for find in (min, max)]
                    row["least, most"] = ", ".join(value(end, task["metric"]) for end in ends)
            row[f"gain, {task['task']}"] = gain(task, task["metric"])
        if other := against.get(run):
            difference = (
                f"{signed(other['difference'], 'acc')} {formatting.interval(other['ci_low'], other['ci_high'])}"
            )
            row[f"less {other['against']}"] = f"{difference}, p {p_value(other['p_value'])}"
        row |= {
            "reward, gain": _mean(own, lambda each: each["held_out_gains"]["reward"]["value"], "{:+.3f}"),
            "KL": _mean(own, lambda each: each["kl"], "{:.2f}"),
            "follows the reward where it errs": _mean(
                own, lambda each: each["agreement"][each["wording"]]["tuned_follows"], "{:.0%}"
            ),
            "frozen probe": _mean(own, lambda each: each["probes_after"]["frozen"]["auroc"], "{:.3f}"),
            "fresh probe": _mean(own, lambda each: each["probes_after"]["fresh"]["auroc"], "{:.3f}"),
        }
        for name in dict.fromkeys(name for each in own for name in (each["probes_after"] or {}).get("off_domain", {})):
            read = [each["probes_after"]["off_domain"][name] for each in own]
            before, after = (mean(each[when]["auroc"] for each in read) for when in ("before", "after"))
            row[f"probe {name}, before and after"] = f"{before:.3f}, {after:.3f}"
        row["seconds"] = _mean(own, lambda each: each["seconds"], "{:.0f}")
        rows.append(row)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    filled = [{name: row.get(name, "") for name in columns} for row in rows]
    return [{name: row[name] for name in columns if any(other[name] for other in filled)} for row in filled]


def _mean(trainings: Sequence[dict[str, Any]], of: Callable[[dict[str, Any]], Number], pattern: str) -> str:
    """The mean over the trainings that have the number; empty where none has."""
    found = []
    for training in trainings:
        try:
            found.append(of(training))
        except (KeyError, TypeError):  # not measured, or nothing to measure it on
            continue
    known = [number for number in found if number is not None]
    return pattern.format(mean(known)) if known else ""
