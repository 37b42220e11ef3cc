"""Compare base and tuned models and write the summary: verdict, tables, figures, pages and model cards."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from elkflow.common.cli import parse, run, timed
from elkflow.common.files import atomic, read_json, write_json, write_text
from elkflow.common.manifests import check_against_manifests, check_manifest, write_manifest
from elkflow.publish.model_card import card
from elkflow.report import charts, formatting, pages, probe_charts, table_rows
from elkflow.summary.plan import Plan
from elkflow.summary.verdict import (
    files_read,
    flat_probes,
    gather,
    manifests,
    read_probe_tables,
    read_steps,
    read_without_rl,
)


@dataclass(frozen=True)
class Arguments:
    """Command line of this script."""

    settings: Plan
    results: Path  # folder with the stages' results
    output: Path  # folder of the summary


def main(argv: list[str] | None = None) -> None:
    arguments = parse(Arguments, argv)
    plan, out = arguments.settings, arguments.output
    found = manifests(plan, arguments.results)
    for manifest in found.values():
        check_manifest(manifest)
    check_against_manifests(*files_read(plan, arguments.results))
    with timed("comparing"):
        verdict = gather(plan, arguments.results)
    comparison = pd.DataFrame(verdict["evaluations"])
    for name, rows in (
        ("comparison", formatting.comparison_rows(verdict["evaluations"])),
        ("probes", formatting.probe_rows(verdict["probes"])),
    ):
        averages = formatting.average_rows(verdict["averages"]) if name == "comparison" else []
        write_text(
            out / f"{name}.md", formatting.markdown(rows) + ("\n" + formatting.markdown(averages) if averages else "")
        )
    for name, table in (("comparison", comparison), ("probes", flat_probes(verdict["probes"]))):
        with atomic(out / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False)
    trainings = pd.DataFrame(table_rows.training_rows(verdict))
    steps = read_steps(plan, arguments.results)
    probe_figures = probe_charts.charts(read_probe_tables(plan, arguments.results), table_rows.chosen_layers(verdict))
    without_rl = read_without_rl(plan, arguments.results)
    with timed("drawing"):
        for name, chart in (
            ("before_after", charts.before_after(comparison)),
            ("training", charts.training(steps)),
            *probe_figures.items(),
            *([("sweep", charts.sweep(trainings, table_rows.sweep_axes(trainings)))] if len(trainings) > 1 else []),
        ):
            charts.save(chart, out / f"{name}.png")
        entries = {name: read_json(path) for name, path in found.items()}
        for name, page in (
            ("overview", pages.overview(verdict)),
            ("probe", pages.probe_page(verdict, probe_figures)),
            ("training", pages.training_page(verdict, steps)),
            ("evaluation", pages.evaluation_page(verdict, comparison, table_rows.without_rl_rows(without_rl, verdict))),
            ("provenance", pages.provenance_page(found, entries)),
        ):
            page.save(out / f"{name}.html")
    for training in verdict["trainings"]:
        folder = arguments.results / "runs" / training["run"] / f"seed{training['seed']}"
        write_text(
            folder / "README.md", card(training, verdict, arguments.results, plan.licences.get(training["policy"]))
        )
    write_json(out / "verdict.json", verdict)
    write_manifest(
        out / "manifest.json",
        outputs={name: out / name for name in ("verdict.json", "comparison.csv", "probes.csv")},
        inputs=found,
        settings=plan,
    )


if __name__ == "__main__":
    run(main)
