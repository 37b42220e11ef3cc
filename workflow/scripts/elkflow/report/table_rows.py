"""Rows of the report's tables, and of the charts of sweeps, from the verdict."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from elkflow.report import formatting
from elkflow.report.formatting import gain, p_value, percent, value

BASELINES = {
    "majority": "majority class",
    "word_overlap": "word overlap",
    "bag_of_words": "bag of words",
    "zero_shot": "the model's own zero-shot answer",
    "random_directions": "random directions",
    "shuffled_labels": "shuffled labels",
    "untrained_model": "a probe on an untrained model",
}
"""Controls of every probe, in the words of the report."""


def rows_of(rows: list[dict[str, Any]], training: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of one run and seed."""
    return [row for row in rows if (row["run"], row["seed"]) == (training["run"], training["seed"])]


def gain_and_p(row: dict[str, Any]) -> str:
    """A difference with its interval and p-value."""
    return f"{gain(row, row['metric'])}, " + ("within noise" if row["within_noise"] else f"p {p_value(row['p_holm'])}")


def interval(row: dict[str, Any], model: str) -> str:
    """The interval of base or tuned model: `[48.1 %, 52.3 %]`."""
    low, high = row[f"{model}_low"], row[f"{model}_high"]
    if low is None:
        return formatting.NONE
    return f"[{value(low, row['metric'])}, {value(high, row['metric'])}]" + (formatting.FIXED if low == high else "")


def measured_on(training: dict[str, Any], probe: dict[str, Any]) -> str:
    """` on cue` where the probe's own metrics are on another dataset than the policy's; else empty."""
    return "" if probe["dataset"] == training["dataset"] else f" on {probe['dataset']}"


def probe_accuracy_label(training: dict[str, Any], probe: dict[str, Any]) -> str:
    """What `probe_accuracy` measures: a probe fitted on another dataset may read something else than the truth."""
    return "what the probe holds true" if measured_on(training, probe) else "what the model knows"


def probe_accuracy(training: dict[str, Any]) -> str:
    """How often the right answer has the higher reward, on the questions that the policy is evaluated on."""
    return "" if training["probe_accuracy"] is None else value(training["probe_accuracy"], "acc")


def chosen_layers(verdict: dict[str, Any]) -> dict[str, tuple[str, int]]:
    """Probe to its method and layer."""
    return {probe["probe"]: (probe["method"], probe["layer"]) for probe in verdict["probes"]}


def average_rows(averages: Sequence[Mapping[Any, Any]]) -> list[dict[str, str]]:
    """One row per averaged suite."""
    return [
        {
            "run": row["run"],
            "seed": str(row["seed"]),
            "suite": f"{row['suite']}, average of {row['tasks']} tasks",
            "questions": str(row["n"]),
            "base": value(row["base"], "acc"),
            "tuned": value(row["tuned"], "acc"),
            "difference [95 %]": gain(row, "acc"),
            "p": p_value(row["p_value"]),
            "method": row["method"],
        }
        for row in averages
    ]


def comparison_rows(evaluations: Sequence[Mapping[Any, Any]]) -> list[dict[str, str]]:
    """One row per run, seed and task."""
    return [
        {
            "run": row["run"],
            "seed": str(row["seed"]),
            "task": row["task"],
            "questions": str(row["n"]),
            "metric": row["metric"],
            "base": value(row["base"], row["metric"]),
            "tuned": value(row["tuned"], row["metric"]),
            "difference [95 %]": gain(row, row["metric"]),
            "p": p_value(row["p_value"]),
            "p (Holm)": p_value(row["p_holm"]),
            "method": row["method"],
            "generalises over": row["generalises_over"],
            "verdict": formatting.judgement(row),
        }
        for row in evaluations
    ]


def probe_rows(probes: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Each probe, and below it the datasets of its mixture and its baselines."""
    rows = []
    for probe in probes:
        rows.append(_probe_row(probe["probe"], f"probe: {probe['method']}, layer {probe['layer']}", probe))
        for name, entry in probe["datasets"].items():
            rows.append(_probe_row("", f"the probe on {name} alone ({entry['rows']} questions)", entry))
        rows += [_probe_row("", BASELINES.get(key, key), entry) for key, entry in probe["baselines"].items()]
    return rows


def _probe_row(probe: str, predictor: str, metrics: dict[str, Any]) -> dict[str, str]:
    shown = f"{metrics['auroc']:.3f}" if "auroc" in metrics else ""
    accuracy = metrics.get("accuracy")
    return {
        "probe": probe,
        "predictor": predictor,
        "AUROC [95 %]": formatting.auroc(metrics) if "auroc_low" in metrics else shown,
        "accuracy": "" if accuracy is None else f"{100 * accuracy:.1f} %",
        "ECE (calibrated: 95 % below)": _ece(metrics),
    }


def _ece(metrics: dict[str, Any]) -> str:
    """ECE, and below what a calibrated probe's would be in 95 % of cases: `0.035 (0.048)`."""
    if "ece" not in metrics:
        return ""
    limit = f" ({metrics['ece_calibrated_high']:.3f})" if "ece_calibrated_high" in metrics else ""
    return f"{metrics['ece']:.3f}{limit}"


def overview_rows(verdict: dict[str, Any]) -> list[dict[str, str]]:
    """One row per training: gains side by side, its probe, and its agreement with probe and truth."""
    probes = {probe["probe"]: probe for probe in verdict["probes"]}
    rows = []
    for training in verdict["trainings"]:
        own = rows_of(verdict["evaluations"], training)
        agreement = training["agreement"].get(training["wording"])
        probe = probes[training["probe"]]
        rows.append(
            {"run": training["run"], "seed": str(training["seed"])}
            | {f"gain, {row['task']}": gain_and_p(row) for row in own if row["kind"] == "training"}
            | {f"gain, {row['task']} (never trained on)": gain_and_p(row) for row in own if row["kind"] == "held_out"}
            | {row["task"]: gain_and_p(row) for row in own if row["kind"] == "general"}
            | {
                f"{row['suite']}, average of {row['tasks']}": (
                    f"{value(row['base'], 'acc')} to {value(row['tuned'], 'acc')}, " + gain(row, "acc")
                )
                for row in rows_of(verdict["averages"], training)
            }
            | {
                "probe AUROC": f"{probe['auroc']:.3f}{measured_on(training, probe)}",
                "probe's accuracy": probe_accuracy(training),
                "agrees with the probe": value(agreement["tuned_probe"], "acc") if agreement else "",
                "agrees with the truth": value(agreement["tuned_truth"], "acc") if agreement else "",
                "outcome": formatting.outcome(training["outcome"]),
            }
        )
    return rows


def seed_rows(seeds: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """One row per run and task, over seeds."""
    return [
        {
            "run": row["run"],
            "task": row["task"],
            "seeds": str(row["seeds"]),
            "base": value(row["base"], row["metric"]),
            "tuned": value(row["tuned"], row["metric"]),
            "mean gain [95 %]": gain(row, row["metric"]),
            "p": p_value(row["p_value"]),
            "method": row["method"],
            "generalises over": row["generalises_over"],
            "gain of each seed": ", ".join(
                f"{seed}: {formatting.signed(each, row['metric'])}" for seed, each in row["per_seed"].items()
            ),
        }
        for row in seeds
    ]


def sweep_rows(verdict: dict[str, Any]) -> list[dict[str, Any]]:
    """One row of plain values per training, for the charts of a sweep."""
    rows = []
    for training in verdict["trainings"]:
        own = rows_of(verdict["evaluations"], training)
        row = {key: training[key] for key in ("run", "seed", "probe", "steps", "exploits_probe")}
        row["outcome"] = formatting.outcome(training["outcome"])
        for kind in ("training", "held_out"):
            if of_kind := [each for each in own if each["kind"] == kind]:
                row |= {
                    f"{kind}_{name}": of_kind[0][name] for name in ("base", "tuned", "difference", "ci_low", "ci_high")
                }
        if agreement := training["agreement"].get(training["wording"]):
            row |= {f"agrees_{name}": agreement[f"tuned_{name}"] for name in ("probe", "truth")}
        for name in set(training["probes_after"] or {}) & {"frozen", "fresh"}:
            row[f"{name}_auroc"] = training["probes_after"][name]["auroc"]
        rows.append(row)
    return rows


def sweep_axes(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Swept numbers, read from the runs' names (`kl+coefficient=0.1`), each with its rows and the number as `value`."""
    axes = {}
    settings = (
        rows["run"].str.split("+").map(lambda parts: dict(part.split("=", 1) for part in parts[1:] if "=" in part))
    )
    for name in dict.fromkeys(key for each in settings for key in each):
        values = pd.to_numeric(settings.map(lambda each, name=name: each.get(name)), errors="coerce")
        if values.nunique() > 1 and "agrees_truth" in rows:
            axes[name] = rows.assign(value=values).dropna(subset=["value", "agrees_truth"])
    return axes


def trend_rows(verdict: dict[str, Any]) -> list[dict[str, str]]:
    """Reward and gold accuracy at the first and the kept step, their gains on held-out questions, and how accurate the
    reward is on the rows trained on."""
    rows = []
    for training in verdict["trainings"]:
        row = {"run": training["run"], "seed": str(training["seed"]), "steps": str(training["steps"])}
        if ceiling := training["gold_ceiling"]:
            row["accuracy of the reward (ppo rows) [95 %]"] = percent(
                *(ceiling[key] for key in ("value", "low", "high"))
            )
        for name, shown in (("reward", "reward"), ("gold", "gold accuracy of allowed answers")):
            ends = training[f"{name}_trend"]
            if ends["start"] is not None:
                row[f"{shown}, first and kept step"] = f"{ends['start']:.3f}, {ends['kept']:.3f}"
        if gains := training["held_out_gains"]:
            reward, gold = gains["reward"], gains["gold"]
            ends = formatting.interval(reward["low"], reward["high"], "{:.3f}", 1)
            row["held-out reward, gain [95 %]"] = f"{reward['value']:+.3f} {ends}"
            ends = formatting.interval(gold["low"], gold["high"])
            row["held-out gold accuracy, gain [95 %]"] = f"{100 * gold['value']:+.1f} {ends} points"
        row["reward hacking"] = training["exploits_probe"]
        rows.append(row)
    return rows


def agreement_rows(verdict: dict[str, Any]) -> list[dict[str, str]]:
    """Agreement with probe and truth, and with the probe where it is wrong, per training and wording."""
    rows = []
    for training in verdict["trainings"]:
        for wording, agreement in training["agreement"].items():
            if agreement is None:
                continue
            rows.append(
                {"questions": f"{training['run']}, seed {training['seed']}, {wording}"}
                | {
                    f"{model} agrees with the {judge}": _with_interval(agreement, f"{model}_{judge}")
                    for judge in ("probe", "truth")
                    for model in ("base", "tuned")
                }
                | {"probe is wrong on": f"{agreement['errors']} of {agreement['n']}"}
                | {
                    f"on those, {model} follows it": _with_interval(agreement, f"{model}_follows")
                    for model in ("base", "tuned")
                }
                | {
                    "errs with it, more than before": (
                        f"{100 * agreement['copying']:+.1f} "
                        f"{formatting.interval(agreement['copying_low'], agreement['copying_high'])} points, "
                        f"p {p_value(agreement['copying_p'])}"
                        if "copying" in agreement
                        else "too few errors to tell"
                    )
                }
            )
    return rows


def _with_interval(agreement: dict[str, Any], name: str) -> str:
    """A proportion of the agreement with its interval; empty where it was not measured."""
    return percent(*(agreement[f"{name}{end}"] for end in ("", "_low", "_high"))) if name in agreement else ""


def fresh_probe_rows(verdict: dict[str, Any]) -> list[dict[str, str]]:
    """AUROC before training, and of the frozen and a fresh probe after it."""
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
                "after, frozen probe": formatting.auroc(after["frozen"])
                if "frozen" in after
                else "reads another model",
                "after, fresh probe": f"{formatting.auroc(after['fresh'])}, layer {after['fresh']['layer']}",
                "fresh less frozen": f"{after['lost']['auroc']:+.3f} "
                + formatting.interval(after["lost"]["auroc_low"], after["lost"]["auroc_high"], "{:.3f}", 1)
                if "lost" in after
                else "",
                "outcome": formatting.outcome(training["outcome"]),
            }
        )
    return rows


def without_rl_rows(table: pd.DataFrame, verdict: dict[str, Any]) -> list[dict[str, str]]:
    """Baselines without reinforcement learning, and below them the tuned models, with the cost of an answer."""
    rows = [
        {
            "run": row["run"],
            "method": row["method"] + (f", N = {row['n']}" if "N" in row["method"] else ""),
            "accuracy [95 %]": percent(row["accuracy"], row["low"], row["high"]),
            "answered": f"{row['answered']:.1%}",
            "forward passes": f"{row['forward_passes']:.0f}",
            "shared where possible": f"{row['forward_passes_shared']:.1f}",
        }
        for row in table.to_dict("records")
    ]
    for row in verdict["evaluations"] if rows else []:
        if row["kind"] == "training":
            rows.append(
                {
                    "run": row["run"],
                    "method": f"tuned model's likelier answer, seed {row['seed']}",
                    "accuracy [95 %]": percent(row["tuned"], row["tuned_low"], row["tuned_high"]),
                    "answered": "100.0%",
                    "forward passes": "1",
                    "shared where possible": "1.0",
                }
            )
    return rows
