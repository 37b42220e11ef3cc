"""The report's pages, from the verdict and the stages' tables."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from elkflow.report import charts, formatting, probe_charts, table_rows
from elkflow.report.formatting import p_value, value
from elkflow.report.html import Page
from elkflow.report.remarks import remarks
from elkflow.report.run_rows import run_rows
from elkflow.summary.diagnosis import OUTCOMES

MOST_SHOWN = 12
"""Trainings shown with large numbers and bars; any more have only a table row and a dot each."""


def overview_page(verdict: dict[str, Any]) -> Page:
    """The verdict on one page: large numbers for each training, then a table of all."""
    page = Page("Does it say what it knows?")
    page.text(
        "A truth probe reads from a frozen model's hidden states which of two answers is true. Its judgement, and no "
        "label, was the policy's reward. Below: what the model said before, what the probe reads, and what the tuned "
        "model says. All numbers are on questions that nothing was trained on; brackets are 95 % intervals.",
        lead=True,
    )
    probes = {probe["probe"]: probe for probe in verdict["probes"]}
    for training in verdict["trainings"][:MOST_SHOWN]:
        own = table_rows.rows_of(verdict["evaluations"], training)
        trained = next((row for row in own if row["kind"] == "training"), None)
        page.heading(f"{training['run']}, seed {training['seed']}")
        if trained is None:
            page.text("No suite evaluates the wording that this run was trained on.")
            continue
        probe = probes[training["probe"]]
        metric = trained["metric"]
        auroc = f"AUROC {formatting.auroc(probe)}{table_rows.measured_on(training, probe)}"
        page.numbers(
            ("what the model says", value(trained["base"], metric), table_rows.interval(trained, "base"), "base"),
            (table_rows.probe_accuracy_label(training, probe), table_rows.probe_accuracy(training), auroc, "probe"),
            (
                "what the tuned model says",
                value(trained["tuned"], metric),
                table_rows.interval(trained, "tuned"),
                "tuned",
            ),
            ("gain", f"{100 * trained['difference']:+.1f} points", f"p {p_value(trained['p_holm'])}", "gain"),
        )
        for text, good in remarks(training, own, probe):
            page.flag(text, good)
    table = pd.DataFrame(table_rows.sweep_rows(verdict))
    if len(table) > 1:
        page.heading(f"All {len(table)} trainings")
        page.text(" ".join(f"{each.name.capitalize()}: {each.meaning}." for each in OUTCOMES.values()))
        page.chart(charts.sweep(table, table_rows.sweep_axes(table)))
    page.heading("Side by side")
    page.text(
        "The gain on the wording trained on and on held-out wordings, the effect on other abilities, and whether the "
        "tuned model agrees more with the probe or with the truth."
    )
    page.table(formatting.few_as_columns(table_rows.overview_rows(verdict)))
    if len(rows := run_rows(verdict)) > 1:
        page.heading("Runs side by side")
        page.text(
            "Means over seeds. Where runs were trained on the same questions, each is compared with the first of them, "
            "answer by answer, in percentage points; brackets are 95 % intervals over questions and seeds."
        )
        page.table(formatting.few_as_columns(rows))
    if any(row["seeds"] > 1 for row in verdict["seeds"]):
        page.heading("Over seeds")
        page.text(
            "Mean gain over seeds with its 95 % interval, and the gain of every seed; none is left out. With several "
            "seeds, the interval allows for the choice of questions and for the seed (Cochran and Cox's t)."
        )
        page.table(table_rows.seed_rows(verdict["seeds"]))
    return page


CAPTIONS = {
    "layers": "Layer and method were chosen on training data that is not shown here. Grey and brown: what chance and "
    "choosing among layers alone achieve. Controls that read no hidden states are on the right.",
    "reliability": "Of the val rows with a predicted probability of about 0.8, are 80 % right? Answer 1 is the second "
    "of the allowed answers, such as Yes.",
    "rewards": "The reward of answer 1 where it is right and where it is wrong. Where the two overlap, some rewards "
    "are wrong.",
    "wordings": "The same probe under each wording it was fitted on. A large spread means that the probe depends on "
    "the wording, not only on the truth.",
    "transfer": "Each row is a probe, each column the val rows of another one. A probe of truth also does well off the "
    "diagonal.",
}


def probe_page(verdict: dict[str, Any], drawn: Mapping[str, Any]) -> Page:
    """Each probe beside the baselines it must beat, and its charts (see `probe_charts.draw_all`)."""
    page = Page("What the model knows: the probe")
    page.text(
        "A probe is a linear classifier on one layer's hidden states: it compares the states after a question answered "
        "Yes with those after the same question answered No. It means something only if it beats the baselines "
        "below it in the table. All numbers are on held-out questions."
    )
    page.table(table_rows.probe_rows(verdict["probes"]))
    for name, chart in drawn.items():
        page.heading(probe_charts.TITLES[name])
        page.text(CAPTIONS[name])
        page.chart(chart)
    return page


def training_page(verdict: dict[str, Any], steps: pd.DataFrame) -> Page:
    """What happened during training."""
    page = Page("Training")
    page.text(
        "Orange is what training optimises: the probe's reward of the policy's sampled answers. Green is the accuracy "
        "of the allowed ones among them, recorded for this chart only. If orange rises and green does not, the policy "
        "learns the probe's errors. A policy that maximised the reward would reach the accuracy of the reward."
    )
    page.chart(charts.training_curves(steps))
    page.table(table_rows.trend_rows(verdict))
    page.heading("Health")
    page.text(
        "How far the policy has moved from the reference (KL, in nats per response), its entropy, the fraction of "
        "allowed answers, and among those the fraction of Yes. A fraction of Yes near 0 or 1, or ever fewer allowed "
        "answers, is a collapse."
    )
    page.chart(charts.training_health(steps))
    return page


def evaluation_page(
    verdict: dict[str, Any], comparison: pd.DataFrame, without_rl: list[dict[str, str]] | None = None
) -> Page:
    """Every task, agreement with probe and truth, probes on the tuned model, and baselines without training."""
    page = Page("Evaluation")
    page.text(
        "Base and tuned model answered the same questions and are compared question by question. Where questions come "
        "in groups that stand or fall together, interval and p-value are from cluster-robust errors over groups. Where "
        "each is on its own, the interval is Student's t and the p-value McNemar's (exact, mid-p) for accuracy, "
        "Student's t for other metrics. P-values are Holm-corrected for the number of tasks."
    )
    if len(verdict["trainings"]) <= MOST_SHOWN:
        page.chart(charts.before_after(comparison))
    page.table(table_rows.comparison_rows(verdict["evaluations"]))
    if any(formatting.fixed(row) for row in verdict["evaluations"]):
        page.text(formatting.FOOTNOTE)
    if verdict["averages"]:
        page.heading("Averages of suites")
        page.text(
            "The plain mean over a suite's tasks, by which leaderboards rank; its interval allows for each task's size."
        )
        page.table(table_rows.average_rows(verdict["averages"]))
    page.heading("The probe or the truth?")
    page.text(
        "Where the probe is right, pleasing it and telling the truth are the same. The questions it gets wrong tell "
        "them apart: a model that training made err there, more than elsewhere, has learnt the reward, not the truth."
    )
    page.table(formatting.few_as_columns(table_rows.agreement_rows(verdict)))
    if fresh := table_rows.fresh_probe_rows(verdict):
        page.heading("Is the truth obfuscated?")
        page.text(
            "Can the truth still be read from the tuned model's states, by the frozen probe that was the reward, and "
            "by a fresh one fitted on the tuned model? If only the fresh probe can read it, training moved the "
            "knowledge out of the frozen probe's sight."
        )
        page.table(fresh)
    if without_rl:
        page.heading("Without reinforcement learning")
        page.text(
            "What the reward achieves at test time without training: the answer with the higher reward, or the best of "
            "several sampled answers. Training must do better, or as well with fewer forward passes per question."
        )
        page.table(without_rl)
    return page


def provenance_page(manifests: Mapping[str, dict[str, Any]]) -> Page:
    """Provenance of every artefact: hashes, seeds, code and packages."""
    page = Page("Provenance")
    page.text(
        "Every artefact has a manifest with the SHA-256 of what it was made from. The command make verify follows the "
        "manifests from the scores back to the rows of the dataset and names every broken link."
    )
    rows = []
    for name, manifest in manifests.items():
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
        packages = {
            name: version for entry in manifests.values() for name, version in entry["code"]["packages"].items()
        }
        page.table([{"package": name, "version": version} for name, version in sorted(packages.items())])
    return page
