"""The report's pages, written from the verdict and the stages' tables."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from elkflow.report import charts, formatting, probe_charts, table_rows
from elkflow.report.formatting import number, p_value
from elkflow.report.html import Page
from elkflow.report.remarks import findings
from elkflow.summary.diagnosis import OUTCOMES

MANY = 12
"""Trainings above this have no figures of their own, only a row and a dot each."""


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
        own = formatting.rows_of(verdict["evaluations"], training)
        trained = next((row for row in own if row["kind"] == "training"), None)
        page.heading(f"{training['run']}, seed {training['seed']}")
        if trained is None:
            page.text("No suite asks the wording this run was trained with.")
            continue
        probe = probes[training["probe"]]
        metric = trained["metric"]
        auroc = f"AUROC {table_rows.auroc(probe)}{table_rows.elsewhere(training, probe)}"
        page.numbers(
            ("what the model says", number(trained["base"], metric), table_rows.interval(trained, "base"), "base"),
            (table_rows.knows(training, probe), table_rows.probe_accuracy(training), auroc, "probe"),
            (
                "what the tuned model says",
                number(trained["tuned"], metric),
                table_rows.interval(trained, "tuned"),
                "tuned",
            ),
            ("gain", f"{100 * trained['difference']:+.1f} points", f"p {p_value(trained['p_holm'])}", "gain"),
        )
        for text, good in findings(training, own, probe):
            page.flag(text, good)
    table = pd.DataFrame(table_rows.training_rows(verdict))
    if len(table) > 1:
        page.heading(f"All {len(table)} trainings")
        page.text(" ".join(f"{kind.capitalize()}: {what}." for kind, what in OUTCOMES.items()))
        page.chart(charts.sweep(table, table_rows.sweep_axes(table)))
    page.heading("Side by side")
    page.text(
        "Gain on the wording trained on and on wordings never trained on, what happened to other abilities, and "
        "whether the tuned model agrees more with the probe or with the truth."
    )
    headlines = table_rows.headline_rows(verdict)
    page.table(headlines if len(headlines) > 4 else formatting.turned(headlines))
    if any(row["seeds"] > 1 for row in verdict["seeds"]):
        page.heading("Over seeds")
        page.text(
            "Mean gain over seeds with its 95 % interval (Student), and every seed's own gain. No seed is left out."
        )
        page.table(table_rows.seed_rows(verdict))
    return page


FIGURE_TEXTS = {
    "layers": "Layer and method are chosen on a part of the training data that is not used here. Grey and brown: what "
    "chance and the freedom to choose among layers can do. Controls that read no hidden states stand at the right.",
    "reliability": "Of the val rows that the probe gives a probability of about 0.8, are 80 % right? Answer 1 is the "
    "second of the allowed answers, such as Yes.",
    "rewards": "The reward of answer 1 where it is right, and where it is wrong. Where the two overlap, training is "
    "told something wrong.",
    "wordings": "The same probe under each wording it was fitted with. A large spread means that it reads the wording "
    "as well as the truth.",
    "transfer": "Each row is a probe, each column the val rows of another. A probe of truth does well off the diagonal "
    "too.",
}


def probe_page(verdict: dict[str, Any], figures: Mapping[str, Any]) -> Page:
    """What each probe knows, beside what it must beat, and its figures (see `probe_charts.charts`)."""
    page = Page("What the model knows: the probe")
    page.text(
        "A probe is a straight line through a layer's hidden states: it compares the states after a question answered "
        "Yes with those after the same question answered No. It is worth something only if it beats the baselines "
        "below it in the table; figures are on held-out questions."
    )
    page.table(formatting.probe_rows(verdict["probes"]))
    for name, chart in figures.items():
        page.heading(probe_charts.TITLES[name])
        page.text(FIGURE_TEXTS[name])
        page.chart(chart)
    return page


def training_page(verdict: dict[str, Any], steps: pd.DataFrame) -> Page:
    """What happened during training."""
    page = Page("Training")
    page.text(
        "Orange is what training sees: the probe's reward for the policy's sampled answers. Green is how often the "
        "allowed ones among them were true, written down for this figure only. If orange rises and green does not, the "
        "policy learns the probe's mistakes. How often the rewards prefer the right answer is what a policy that "
        "pleases the probe perfectly would reach."
    )
    page.chart(charts.training(steps))
    page.table(table_rows.trend_rows(verdict))
    page.heading("Health")
    page.text(
        "How far the policy moved from where it started (KL, in nats a response), how undecided it still is (entropy), "
        "the share of allowed answers, and of those the share of Yes. A share of Yes near 0 or 1, or fewer and fewer "
        "allowed answers, is a collapse."
    )
    page.chart(charts.health(steps))
    return page


def evaluation_page(
    verdict: dict[str, Any], comparison: pd.DataFrame, without_rl: list[dict[str, str]] | None = None
) -> Page:
    """Every task, whom the tuned model agrees with, what is still in its states, and what needs no training."""
    page = Page("Evaluation")
    page.text(
        "Base and tuned model answered the same questions, so they are compared question by question: McNemar's exact "
        "test for accuracy, a sign-flip test for other metrics, corrected for the number of tasks (Holm). Intervals "
        "resample whole groups of related questions."
    )
    if len(verdict["trainings"]) <= MANY:
        page.chart(charts.before_after(comparison))
    page.table(formatting.comparison_rows(verdict["evaluations"]))
    if verdict["averages"]:
        page.heading("Averages of suites")
        page.text("The plain mean of a suite's tasks, as leaderboards rank by; its interval knows each task's size.")
        page.table(formatting.average_rows(verdict["averages"]))
    page.heading("The probe or the truth?")
    page.text(
        "On most questions the probe is right and pleasing it is telling the truth. The questions where the probe errs "
        "tell them apart: a model that follows the probe there has learnt the reward, not the truth."
    )
    agreements = table_rows.agreement_rows(verdict)
    page.table(agreements if len(agreements) > 4 else formatting.turned(agreements))
    if fresh := table_rows.fresh_rows(verdict):
        page.heading("Hidden or kept?")
        page.text(
            "Can the truth still be read from the tuned model's states? By the frozen probe, which was the reward, and "
            "by a fresh one fitted on the tuned model. If only the fresh one can, training moved the knowledge out of "
            "the probe's sight."
        )
        page.table(fresh)
    if without_rl:
        page.heading("Without reinforcement learning")
        page.text(
            "What the reward achieves at test time by itself: giving the answer it prefers, or the best of several "
            "sampled answers. Training has to be worth more than this, or cheaper (cost: forward passes a question)."
        )
        page.table(without_rl)
    return page


def provenance_page(manifests: dict[str, Path], entries: dict[str, dict[str, Any]]) -> Page:
    """What every figure was made from: hashes, seeds, code and packages of each artefact."""
    page = Page("Provenance")
    page.text(
        "Every artefact has a manifest beside it with the SHA-256 of what it was made from. The command make verify "
        "follows them from the scores back to the rows of the dataset and names the first link that does not hold."
    )
    rows = []
    for name in manifests:
        manifest = entries[name]
        commit = manifest["code"]["commit"] or ""
        rows.append(
            {
                "artefact": name,
                "made from": ", ".join(manifest["inputs"]),
                "sha256": ", ".join(f"{key}: {entry['sha256'][:12]}" for key, entry in manifest["outputs"].items()),
                "seed": "" if manifest["seed"] is None else str(manifest["seed"]),
                "commit (+: changed)": commit[:10] + commit[40:],
                "facts": ", ".join(
                    f"{key}: {value}"
                    for key, value in manifest["facts"].items()
                    if value not in (None, "") and not isinstance(value, dict)
                ),
            }
        )
    page.table(rows)
    if rows:
        page.heading("Packages")
        packages = {name: version for entry in entries.values() for name, version in entry["code"]["packages"].items()}
        page.table([{"package": name, "version": version} for name, version in sorted(packages.items())])
    return page
