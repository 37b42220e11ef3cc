"""The verdict as printed in the terminal."""

from textwrap import fill
from typing import Any

from elkflow.report import formatting, table_rows
from elkflow.report.formatting import p_value, signed, value
from elkflow.report.remarks import remarks
from elkflow.report.run_rows import run_rows
from elkflow.report.table_rows import rows_of


def verdict_text(verdict: dict[str, Any]) -> str:
    """One block per run and seed, then the means over seeds, then the runs side by side."""
    probes = {probe["probe"]: probe for probe in verdict["probes"]}
    blocks = [_block(training, verdict, probes[training["probe"]]) for training in verdict["trainings"]]
    if rows := table_rows.seed_rows([row for row in verdict["seeds"] if row["seeds"] > 1]):
        blocks.append(formatting.align([list(rows[0]), *(list(row.values()) for row in rows)]))
    if len(runs := run_rows(verdict)) > 1:
        shown = formatting.few_as_columns(runs, few=12)
        blocks.append(formatting.align([list(shown[0]), *(list(row.values()) for row in shown)]))
    return "\n\n".join(blocks)


def _block(training: dict[str, Any], verdict: dict[str, Any], probe: dict[str, Any]) -> str:
    own = rows_of(verdict["evaluations"], training)
    shown = [row for row in own if row["kind"] != "general"] + [row for row in own if row["kind"] == "general"]
    accuracy = table_rows.probe_accuracy(training)
    table = [
        ["", *(row["task"] for row in shown)],
        ["what the model says", *(value(row["base"], row["metric"]) for row in shown)],
        [
            table_rows.probe_accuracy_label(training, probe),
            *(accuracy if row["kind"] == "training" else "" for row in shown),
        ],
        ["what the tuned model says", *(value(row["tuned"], row["metric"]) for row in shown)],
        ["  gain", *(signed(row["difference"], row["metric"]) for row in shown)],
        ["  95 % interval", *(_bounds(row) for row in shown)],
        ["  p (Holm)", *(p_value(row["p_holm"]) for row in shown)],
        ["  by", *(row["method"] for row in shown)],
    ]
    n = max((row["n"] for row in shown if row["kind"] != "general"), default=0)
    averages = table_rows.average_rows(rows_of(verdict.get("averages", []), training))
    return "\n".join(
        [
            f"{training['run']}, seed {training['seed']}: {n} questions never trained on",
            formatting.align(table),
            *(f"{row['suite']}: {row['base']} -> {row['tuned']}, {row['difference [95 %]']}" for row in averages),
            f"probe {probe['probe']}: {probe['method']}, layer {probe['layer']}, AUROC {formatting.auroc(probe)}"
            + table_rows.measured_on(training, probe),
            *_probes_after(training),
            *(fill(f"- {text}", 110, subsequent_indent="  ") for text, _ in remarks(training, own, probe)),
            *(
                [fill(formatting.FOOTNOTE, 110)]
                if any(_bounds(row).endswith(formatting.FIXED) for row in shown)
                else []
            ),
        ]
    )


def _probes_after(training: dict[str, Any]) -> list[str]:
    """AUROC of frozen and fresh probe on the tuned model's states, where the config asks for it."""
    after = training.get("probes_after")
    if not after:
        return []
    found = [f"{after[name]['auroc']:.3f} {name} probe" for name in ("frozen", "fresh") if name in after]
    for name, each in after.get("off_domain", {}).items():
        found.append(f"{each['after']['auroc']:.3f} probe {name} (before: {each['before']['auroc']:.3f})")
    return [f"AUROC on the tuned model's states: {', '.join(found)}"]


def _bounds(row: dict[str, Any]) -> str:
    if row["ci_low"] is None:
        return formatting.NONE
    low, high = (signed(row[end], row["metric"]) for end in ("ci_low", "ci_high"))
    return f"[{low}, {high}]" + (formatting.FIXED if row["ci_low"] == row["ci_high"] else "")
