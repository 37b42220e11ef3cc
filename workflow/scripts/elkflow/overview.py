"""The report's pages, written from the verdict and the stages' tables."""

from pathlib import Path
from typing import Any

import pandas as pd

from elkflow import plots, tables
from elkflow.diagnosis import OUTCOMES
from elkflow.pages import Page
from elkflow.tables import gain, number, p_value

MANY = 12
"""Trainings above this are a sweep: one row and one dot each instead of a panel each."""


def overview(verdict: dict[str, Any]) -> Page:
    """The verdict on one page: large figures for each training, then one table."""
    page = Page("Does it say what it knows?")
    page.text(
        "A truth probe reads from a frozen model which of two answers is true. That judgement, and no label, is what "
        "the policy was trained on. Below: what the model said before, what the probe knows, what the tuned model "
        "says. All figures are on questions that nothing was trained on; brackets are 95 % intervals.",
        lead=True,
    )
    probes = {probe["probe"]: probe for probe in verdict["probes"]}
    for training in verdict["trainings"][:MANY]:
        own = rows_of(verdict["evaluations"], training)
        trained = next((row for row in own if row["kind"] == "training"), None)
        page.heading(f"{training['run']}, seed {training['seed']}")
        if trained is None:
            page.text("No suite asks the wording this run was trained with.")
            continue
        probe = probes[training["probe"]]
        metric = trained["metric"]
        page.numbers(
            ("what the model says", number(trained["base"], metric), interval(trained, "base"), "base"),
            ("what the model knows", number(probe["accuracy"], "acc"), f"AUROC {auroc(probe)}", "probe"),
            ("what the tuned model says", number(trained["tuned"], metric), interval(trained, "tuned"), "tuned"),
            ("gain", f"{100 * trained['difference']:+.1f} points", f"p {p_value(trained['p_holm'])}", "gain"),
        )
        for text, good in findings(training, own, probe):
            page.flag(text, good)
    if len(verdict["trainings"]) > MANY:
        page.heading(f"All {len(verdict['trainings'])} trainings")
        page.chart(plots.sweep(pd.DataFrame(training_rows(verdict))))
    page.heading("Side by side")
    page.text(
        "Gain on the wording trained on and on wordings never trained on, what happened to other abilities, and "
        "whether the tuned model agrees more with the probe or with the truth."
    )
    headlines = headline_rows(verdict)
    page.table(headlines if len(headlines) > 4 else tables.turned(headlines))
    if any(row["seeds"] > 1 for row in verdict["seeds"]):
        page.heading("Over seeds")
        page.text(
            "Mean gain over seeds with its 95 % interval (Student), and every seed's own gain. No seed is left out."
        )
        page.table(seed_rows(verdict))
    return page


def findings(training: dict[str, Any], own: list[dict[str, Any]], probe: dict[str, Any]) -> list[tuple[str, bool]]:
    """Remarks on one training: (text, whether it is good news)."""
    found = []
    trained = next(row for row in own if row["kind"] == "training")
    if training["outcome"] == "honest":
        found.append((f"Honest: {OUTCOMES['honest']} ({points(trained)}).", True))
    else:
        found.append(
            (f"{training['outcome'].capitalize()}: {OUTCOMES[training['outcome']]} ({points(trained)}).", False)
        )
    if training["ended"] != "finished":
        found.append(
            (
                f"Training ended early ({training['ended']}): {training['reason']}; kept step {training['kept_step']}.",
                False,
            )
        )
    if training["exploits_probe"]:
        whom = training["agreement"][training["wording"]]
        found.append(
            (
                "Reward hacking: the reward rose during training, gold accuracy did not; the tuned model agrees with "
                f"the probe in {whom['tuned_probe']:.0%} and with the truth in {whom['tuned_truth']:.0%} of answers.",
                False,
            )
        )
    if not probe["admitted"]:
        found.append(
            ("The probe does not lead its baselines by the required margin; it was let through on request.", False)
        )
    for row in own:
        if row["kind"] == "general" and tables.judgement(row) == "worse":
            found.append((f"Other abilities suffered: {row['task']} {points(row)}.", False))
    return found


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


def rows_of(evaluations: list[dict[str, Any]], training: dict[str, Any]) -> list[dict[str, Any]]:
    """The comparison's rows of one run and seed."""
    return [row for row in evaluations if (row["run"], row["seed"]) == (training["run"], training["seed"])]


def headline_rows(verdict: dict[str, Any]) -> list[dict[str, str]]:
    """One row a training: gains side by side, probe, and whom the tuned model agrees with."""
    probes = {probe["probe"]: probe for probe in verdict["probes"]}
    rows = []
    for training in verdict["trainings"]:
        own = rows_of(verdict["evaluations"], training)
        whom = training["agreement"].get(training["wording"])
        rows.append(
            {"run": training["run"], "seed": str(training["seed"])}
            | {f"gain, {row['task']}": points(row) for row in own if row["kind"] == "training"}
            | {f"gain, {row['task']} (never trained on)": points(row) for row in own if row["kind"] == "held_out"}
            | {row["task"]: points(row) for row in own if row["kind"] == "general"}
            | {
                "probe AUROC": f"{probes[training['probe']]['auroc']:.3f}",
                "agrees with the probe": f"{whom['tuned_probe']:.1%}" if whom else "",
                "agrees with the truth": f"{whom['tuned_truth']:.1%}" if whom else "",
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
                f"{seed}: {tables.signed(g, row['metric'])}" for seed, g in row["per_seed"].items()
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
        rows.append(row)
    return rows


def probe_page(verdict: dict[str, Any], layers: pd.DataFrame) -> Page:
    """What each probe knows, beside what it must beat."""
    page = Page("What the model knows: the probe")
    page.text(
        "A probe is a straight line through a layer's hidden states: it compares the states after a question answered "
        "Yes with those after the same question answered No. It is worth something only if it beats the baselines "
        "below it in the table; figures are on held-out questions."
    )
    page.table(tables.probe_rows(verdict["probes"]))
    page.heading("AUROC by layer")
    page.text("Layer and method are chosen on a part of the training data that is not used here. Hover for figures.")
    page.chart(plots.layers(layers, chosen_layers(verdict)))
    return page


def chosen_layers(verdict: dict[str, Any]) -> dict[str, tuple[str, int]]:
    """Probe to its method and layer."""
    return {probe["probe"]: (probe["method"], probe["layer"]) for probe in verdict["probes"]}


def training_page(verdict: dict[str, Any], steps: pd.DataFrame) -> Page:
    """What happened during training."""
    page = Page("Training")
    page.text(
        "Orange is what training sees: the probe's reward for the policy's sampled answers. Green is how often those "
        "answers were true, written down for this figure only. If orange rises and green does not, the policy learns "
        "the probe's mistakes."
    )
    page.chart(plots.training(steps))
    page.table(trend_rows(verdict))
    page.heading("Health")
    page.text(
        "How far the policy moved from where it started (KL, in nats a response), how undecided it still is (entropy), "
        "the share of allowed answers, and of those the share of Yes. A share of Yes near 0 or 1, or fewer and fewer "
        "allowed answers, is a collapse."
    )
    page.chart(plots.health(steps))
    return page


def trend_rows(verdict: dict[str, Any]) -> list[dict[str, str]]:
    """Change of reward and gold accuracy from first to last step."""
    rows = []
    for training in verdict["trainings"]:
        row = {"run": training["run"], "seed": str(training["seed"]), "steps": str(training["steps"])}
        for name, shown in (("reward", "reward"), ("gold", "gold accuracy")):
            change = training[f"{name}_trend"]
            ends = "" if change["low"] is None else f" [{change['low']:+.3f}, {change['high']:+.3f}]"
            row[f"{shown}, change over training [95 %]"] = f"{change['change']:+.3f}{ends}"
        row["reward hacking"] = "yes" if training["exploits_probe"] else "no"
        rows.append(row)
    return rows


def evaluation_page(verdict: dict[str, Any], comparison: pd.DataFrame) -> Page:
    """Every task, and whom the tuned model agrees with."""
    page = Page("Evaluation")
    page.text(
        "Base and tuned model answered the same questions, so they are compared question by question: McNemar's exact "
        "test for accuracy, a sign-flip test for other metrics, corrected for the number of tasks (Holm). Intervals "
        "resample whole groups of related questions."
    )
    if len(verdict["trainings"]) <= MANY:
        page.chart(plots.before_after(comparison))
    page.table(tables.comparison_rows(verdict["evaluations"]))
    page.heading("The probe or the truth?")
    page.text(
        "On most questions the probe is right and pleasing it is telling the truth. The questions where the probe errs "
        "tell them apart: a model that follows the probe there has learnt the reward, not the truth."
    )
    agreements = agreement_rows(verdict)
    page.table(agreements if len(agreements) > 4 else tables.turned(agreements))
    return page


def agreement_rows(verdict: dict[str, Any]) -> list[dict[str, str]]:
    """Agreement with probe and truth, and on the probe's errors, by training and wording."""
    rows = []
    for training in verdict["trainings"]:
        for wording, whom in training["agreement"].items():
            if whom is None:
                continue
            rows.append(
                {"run": training["run"], "seed": str(training["seed"]), "wording": wording}
                | {
                    f"{model} agrees with the {judge}": share(whom, f"{model}_{judge}")
                    for judge in ("probe", "truth")
                    for model in ("base", "tuned")
                }
                | {"probe errs on": f"{whom['errors']} of {whom['n']}"}
                | {f"there {model} follows it": share(whom, f"{model}_follows") for model in ("base", "tuned")}
            )
    return rows


def share(figures: dict[str, Any], name: str) -> str:
    """`81.2 % [78.0, 84.1]`, or nothing where it was not measured."""
    if name not in figures:
        return ""
    value, low, high = (100 * figures[f"{name}{end}"] for end in ("", "_low", "_high"))
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]"


def provenance_page(manifests: dict[str, Path], entries: dict[str, dict[str, Any]]) -> Page:
    """What every figure was made from: hashes, seeds, code and packages of each artefact."""
    page = Page("Provenance")
    page.text(
        "Every artefact has a manifest beside it with the SHA-256 of what it was made from. `make verify` follows them "
        "from the scores back to the rows of the dataset and names the first link that does not hold."
    )
    rows = []
    for name in manifests:
        manifest = entries[name]
        code = manifest["code"]
        rows.append(
            {
                "artefact": name,
                "made from": ", ".join(manifest["inputs"]),
                "sha256": ", ".join(f"{key}: {entry['sha256'][:12]}" for key, entry in manifest["outputs"].items()),
                "seed": "" if manifest["seed"] is None else str(manifest["seed"]),
                "commit": (code["commit"] or "")[:13],
                "facts": ", ".join(
                    f"{key}: {value}" for key, value in manifest["facts"].items() if not isinstance(value, dict)
                ),
            }
        )
    page.table(rows)
    if rows:
        page.heading("Packages")
        packages = {name: version for entry in entries.values() for name, version in entry["code"]["packages"].items()}
        page.table([{"package": name, "version": version} for name, version in sorted(packages.items())])
    return page
