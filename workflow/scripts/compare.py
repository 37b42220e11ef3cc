"""Compare base and tuned models and write the summary: verdict, tables, figures, pages and model cards."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from elkflow import digest, overview, plots, probe_plots, tables
from elkflow.cards import card
from elkflow.cli import parse, run, timed
from elkflow.files import atomic, read_json, write_json, write_text
from elkflow.lineage import check, check_files, write_manifest
from elkflow.settings.summary import Plan
from elkflow.summary import files_read, gather, manifests, read_probe_tables, read_steps, read_without_rl


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
        check(manifest)
    check_files(*files_read(plan, arguments.results))
    with timed("comparing"):
        verdict = gather(plan, arguments.results)
    comparison = pd.DataFrame(verdict["evaluations"])
    for name, rows in (
        ("comparison", tables.comparison_rows(verdict["evaluations"])),
        ("probes", tables.probe_rows(verdict["probes"])),
    ):
        averages = tables.average_rows(verdict["averages"]) if name == "comparison" else []
        write_text(out / f"{name}.md", tables.markdown(rows) + ("\n" + tables.markdown(averages) if averages else ""))
    for name, table in (("comparison", comparison), ("probes", tables.flat_probes(verdict["probes"]))):
        with atomic(out / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False)
    trainings = pd.DataFrame(digest.training_rows(verdict))
    steps = read_steps(plan, arguments.results)
    probe_charts = probe_plots.charts(read_probe_tables(plan, arguments.results), digest.chosen_layers(verdict))
    without_rl = read_without_rl(plan, arguments.results)
    with timed("drawing"):
        for name, chart in (
            ("before_after", plots.before_after(comparison)),
            ("training", plots.training(steps)),
            *probe_charts.items(),
            *([("sweep", plots.sweep(trainings, digest.sweep_axes(trainings)))] if len(trainings) > 1 else []),
        ):
            plots.save(chart, out / f"{name}.png")
        entries = {name: read_json(path) for name, path in found.items()}
        for name, page in (
            ("overview", overview.overview(verdict)),
            ("probe", overview.probe_page(verdict, probe_charts)),
            ("training", overview.training_page(verdict, steps)),
            ("evaluation", overview.evaluation_page(verdict, comparison, digest.without_rl_rows(without_rl, verdict))),
            ("provenance", overview.provenance_page(found, entries)),
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
