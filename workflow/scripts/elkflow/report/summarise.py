"""The summary of everything that was run: verdict, tables, charts, pages and model cards."""

from pathlib import Path

import pandas as pd

from elkflow.common.cli import timed
from elkflow.common.files import atomic, read_json, write_json, write_text
from elkflow.common.manifests import check_against_manifests, check_manifest, write_manifest
from elkflow.report import charts, formatting, pages, probe_charts, table_rows
from elkflow.report.html import Page
from elkflow.report.model_card import model_card
from elkflow.summary.plan import Plan
from elkflow.summary.results import (
    input_files,
    manifest_files,
    probe_table,
    read_probe_tables,
    read_steps,
    read_without_rl,
    run_folder,
)
from elkflow.summary.verdict import build_verdict


def summarise(plan: Plan, results: Path, out: Path) -> None:
    """Check every input, then write verdict, tables, charts, pages, cards and manifest.

    Args:
        results: folder with the stages' results; a model card, README.md, goes beside every merged model.
        out: folder of the summary.

    Raises:
        UserError: a file is missing, damaged or not what its manifest says.
    """
    manifests = manifest_files(plan, results)
    for manifest in manifests.values():
        check_manifest(manifest)
    check_against_manifests(*input_files(plan, results))
    with timed("comparing"):
        verdict = build_verdict(plan, results)
    comparison = pd.DataFrame(verdict["evaluations"])
    tables = [table_rows.comparison_rows(verdict["evaluations"]), table_rows.average_rows(verdict["averages"])]
    texts = [formatting.markdown(rows) for rows in tables if rows]
    if any(formatting.fixed(row) for row in verdict["evaluations"]):
        texts.append(formatting.FOOTNOTE + "\n")
    write_text(out / "comparison.md", "\n".join(texts))
    write_text(out / "probes.md", formatting.markdown(table_rows.probe_rows(verdict["probes"])))
    for name, table in (("comparison", comparison), ("probes", probe_table(verdict["probes"]))):
        with atomic(out / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False)
    steps = read_steps(plan, results)
    probes = probe_charts.draw_all(read_probe_tables(plan, results), table_rows.chosen_layers(verdict))
    with timed("drawing"):
        drawn = {"before_after": charts.before_after(comparison), "training": charts.training_curves(steps)} | probes
        if len(verdict["trainings"]) > 1:
            trainings = pd.DataFrame(table_rows.sweep_rows(verdict))
            drawn["sweep"] = charts.sweep(trainings, table_rows.sweep_axes(trainings))
        for name, chart in drawn.items():
            charts.save(chart, out / f"{name}.png")
        without_rl = table_rows.without_rl_rows(read_without_rl(plan, results), verdict)
        written: dict[str, Page] = {
            "overview": pages.overview_page(verdict),
            "probe": pages.probe_page(verdict, probes),
            "training": pages.training_page(verdict, steps),
            "evaluation": pages.evaluation_page(verdict, comparison, without_rl),
            "provenance": pages.provenance_page({name: read_json(path) for name, path in manifests.items()}),
        }
        for name, page in written.items():
            page.save(out / f"{name}.html")
    for training, row in zip(plan.trainings(), verdict["trainings"], strict=True):
        card = model_card(row, verdict, results, plan.licences.get(training.policy))
        write_text(run_folder(results, training) / "README.md", card)
    write_json(out / "verdict.json", verdict)
    write_manifest(
        out / "manifest.json",
        outputs={name: out / name for name in ("verdict.json", "comparison.csv", "probes.csv")},
        inputs=manifests,
        settings=plan,
    )
