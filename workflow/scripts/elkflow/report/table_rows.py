"""Rows for the report's tables and plots, gathered from the verdict."""

from typing import Any

import pandas as pd

from elkflow.report import formatting
from elkflow.report.formatting import gain, number, p_value, rows_of


def points(row: dict[str, Any]) -> str:
    """A difference with its interval and p-value."""
    text = gain(row["difference"], row["ci_low"], row["ci_high"], row["metric"])
    return f"{text}, " + ("within noise" if row["within_noise"] else f"p {p_value(row['p_holm'])}")


def interval(row: dict[str, Any], name: str) -> str:
    """`[48.1 %, 52.3 %]` of base or tuned."""
    return f"[{number(row[f'{name}_low'], row['metric'])}, {number(row[f'{name}_high'], row['metric'])}]"


def auroc(probe: dict[str, Any]) -> str:
    """AUROC with its interval."""
    return f"{probe['auroc']:.3f} [{probe['auroc_low']:.3f}, {probe['auroc_high']:.3f}]"


def elsewhere(training: dict[str, Any], probe: dict[str, Any]) -> str:
    """` on cue`, where a probe's own figures are about other questions than the policy was asked; else nothing."""
    return "" if probe["dataset"] == training["dataset"] else f" on {probe['dataset']}"


def knows(training: dict[str, Any], probe: dict[str, Any]) -> str:
    """What `probe_accuracy` is the accuracy of: a probe of other questions may know something else than the truth."""
    return "what the probe holds true" if elsewhere(training, probe) else "what the model knows"


def probe_accuracy(training: dict[str, Any]) -> str:
    """How often the reward prefers the right answer to the questions that the policy is evaluated on."""
    return "" if training["probe_accuracy"] is None else number(training["probe_accuracy"], "acc")


def share(figures: dict[str, Any], name: str) -> str:
    """`81.2 % [78.0, 84.1]`, or nothing where it was not measured."""
    if name not in figures:
        return ""
    value, low, high = (100 * figures[f"{name}{end}"] for end in ("", "_low", "_high"))
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]"


def chosen_layers(verdict: dict[str, Any]) -> dict[str, tuple[str, int]]:
    """Probe to its method and layer."""
    return {probe["probe"]: (probe["method"], probe["layer"]) for probe in verdict["probes"]}


def headline_rows(verdict: dict[str, Any]) -> list[dict[str, str]]:
    """One row a training: gains side by side, probe, and whom the tuned model agrees with."""
    probes = {probe["probe"]: probe for probe in verdict["probes"]}
    rows = []
    for training in verdict["trainings"]:
        own = rows_of(verdict["evaluations"], training)
        whom = training["agreement"].get(training["wording"])
        probe = probes[training["probe"]]
        rows.append(
            {"run": training["run"], "seed": str(training["seed"])}
            | {f"gain, {row['task']}": points(row) for row in own if row["kind"] == "training"}
            | {f"gain, {row['task']} (never trained on)": points(row) for row in own if row["kind"] == "held_out"}
            | {row["task"]: points(row) for row in own if row["kind"] == "general"}
            | {
                f"{row['suite']}, average of {row['tasks']}": (
                    f"{number(row['base'], 'acc')} to {number(row['tuned'], 'acc')}, "
                    + gain(row["difference"], row["ci_low"], row["ci_high"], "acc")
                )
                for row in rows_of(verdict["averages"], training)
            }
            | {
                "probe AUROC": f"{probe['auroc']:.3f}{elsewhere(training, probe)}",
                "probe's accuracy": probe_accuracy(training),
                "agrees with the probe": number(whom["tuned_probe"], "acc") if whom else "",
                "agrees with the truth": number(whom["tuned_truth"], "acc") if whom else "",
                "outcome": training["outcome"] or "",
            }
        )
    return rows


def seed_rows(verdict: dict[str, Any]) -> list[dict[str, str]]:
    """One row a run and task, over seeds."""
    return [
        {
            "run": row["run"],
            "task": row["task"],
            "seeds": str(row["seeds"]),
            "base": number(row["base"], row["metric"]),
            "tuned": number(row["tuned"], row["metric"]),
            "mean gain [95 %]": gain(row["difference"], row["ci_low"], row["ci_high"], row["metric"]),
            "gain of each seed": ", ".join(
                f"{seed}: {formatting.signed(g, row['metric'])}" for seed, g in row["per_seed"].items()
            ),
        }
        for row in verdict["seeds"]
    ]


def training_rows(verdict: dict[str, Any]) -> list[dict[str, Any]]:
    """One flat row a training, for tables and plots of sweeps."""
    rows = []
    for training in verdict["trainings"]:
        own = rows_of(verdict["evaluations"], training)
        row = {key: training[key] for key in ("run", "seed", "probe", "outcome", "steps", "exploits_probe")}
        for kind in ("training", "held_out"):
            if of_kind := [each for each in own if each["kind"] == kind]:
                row |= {
                    f"{kind}_{name}": of_kind[0][name] for name in ("base", "tuned", "difference", "ci_low", "ci_high")
                }
        if whom := training["agreement"].get(training["wording"]):
            row |= {f"agrees_{name}": whom[f"tuned_{name}"] for name in ("probe", "truth")}
        for name in set(training["probes_after"] or {}) & {"frozen", "fresh"}:
            row[f"{name}_auroc"] = training["probes_after"][name]["auroc"]
        rows.append(row)
    return rows


def sweep_axes(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Swept numbers by name, from the runs' names (`kl+coefficient=0.1`), with the rows and the number as `value`."""
    found = {}
    settings = (
        rows["run"].str.split("+").map(lambda parts: dict(part.split("=", 1) for part in parts[1:] if "=" in part))
    )
    for name in dict.fromkeys(key for each in settings for key in each):
        values = pd.to_numeric(settings.map(lambda each, name=name: each.get(name)), errors="coerce")
        if values.nunique() > 1 and "agrees_truth" in rows:
            found[name] = rows.assign(value=values).dropna(subset=["value", "agrees_truth"])
    return found


def trend_rows(verdict: dict[str, Any]) -> list[dict[str, str]]:
    """Change of reward and gold accuracy from first to last step, and how right the reward itself is on its rows."""
    rows = []
    for training in verdict["trainings"]:
        row = {"run": training["run"], "seed": str(training["seed"]), "steps": str(training["steps"])}
        if ceiling := training["gold_ceiling"]:
            value, low, high = (f"{100 * ceiling[name]:.1f}" for name in ("value", "low", "high"))
            row["rewards prefer the right answer (ppo rows) [95 %]"] = f"{value} % [{low}, {high}]"
        for name, shown in (("reward", "reward"), ("gold", "gold accuracy of allowed answers")):
            change = training[f"{name}_trend"]
            ends = "" if change["low"] is None else f" [{change['low']:+.3f}, {change['high']:+.3f}]"
            row[f"{shown}, change over training [95 %]"] = f"{change['change']:+.3f}{ends}"
        row["reward hacking"] = "yes" if training["exploits_probe"] else "no"
        rows.append(row)
    return rows


def agreement_rows(verdict: dict[str, Any]) -> list[dict[str, str]]:
    """Agreement with probe and truth, and on the probe's errors, by training and wording."""
    rows = []
    for training in verdict["trainings"]:
        for wording, whom in training["agreement"].items():
            if whom is None:
                continue
            rows.append(
                {"asked": f"{training['run']}, seed {training['seed']}, {wording}"}
                | {
                    f"{model} agrees with the {judge}": share(whom, f"{model}_{judge}")
                    for judge in ("probe", "truth")
                    for model in ("base", "tuned")
                }
                | {"probe errs on": f"{whom['errors']} of {whom['n']}"}
                | {f"there {model} follows it": share(whom, f"{model}_follows") for model in ("base", "tuned")}
            )
    return rows


def fresh_rows(verdict: dict[str, Any]) -> list[dict[str, str]]:
    """AUROC before training, and of frozen and fresh probe after it."""
    probes = {probe["probe"]: probe for probe in verdict["probes"]}
    rows = []
    for training in verdict["trainings"]:
        if not training["probes_after"]:
            continue
        after = training["probes_after"]
        rows.append(
            {
                "run": training["run"],
                "seed": str(training["seed"]),
                "before training": f"{after['before']:.3f}, layer {probes[training['probe']]['layer']}",
                "after, frozen probe": auroc(after["frozen"]) if "frozen" in after else "reads another model",
                "after, fresh probe": f"{auroc(after['fresh'])}, layer {after['fresh']['layer']}",
                "outcome": training["outcome"] or "",
            }
        )
    return rows


def without_rl_rows(table: pd.DataFrame, verdict: dict[str, Any]) -> list[dict[str, str]]:
    """What needs no training, and under it the tuned models, with what an answer costs."""
    rows = [
        {
            "run": row["run"],
            "method": row["method"] + (f", N = {row['n']}" if "N" in row["method"] else ""),
            "accuracy [95 %]": f"{100 * row['accuracy']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]",
            "answered": f"{row['answered']:.1%}",
            "forward passes": f"{row['forward_passes']:.0f}",
            "shared where possible": f"{row['forward_passes_shared']:.1f}",
        }
        for row in table.to_dict("records")
    ]
    tuned = [row for row in verdict["evaluations"] if row["kind"] == "training"] if rows else []
    for row in tuned:
        low, high = 100 * row["tuned_low"], 100 * row["tuned_high"]
        figures = f"{100 * row['tuned']:.1f} % [{low:.1f}, {high:.1f}]"
        rows.append(
            {
                "run": row["run"],
                "method": f"tuned model's likelier answer, seed {row['seed']}",
                "accuracy [95 %]": figures,
                "answered": "100.0%",
                "forward passes": "1",
                "shared where possible": "1.0",
            }
        )
    return rows
