"""The verdict as the terminal shows it."""

from textwrap import fill
from typing import Any

from elkflow.report import formatting, table_rows
from elkflow.report.formatting import number, p_value, rows_of, signed
from elkflow.report.remarks import findings


def verdict_text(verdict: dict[str, Any]) -> str:
    """The verdict as a few lines for the terminal: one block a run and seed, then the means over seeds."""
    probes = {probe["probe"]: probe for probe in verdict["probes"]}
    blocks = [_block(training, verdict, probes[training["probe"]]) for training in verdict["trainings"]]
    if rows := table_rows.seed_rows({"seeds": [row for row in verdict["seeds"] if row["seeds"] > 1]}):
        blocks.append(formatting.plain([list(rows[0]), *(list(row.values()) for row in rows)]))
    return "\n\n".join(blocks)


def _block(training: dict[str, Any], verdict: dict[str, Any], probe: dict[str, Any]) -> str:
    own = rows_of(verdict["evaluations"], training)
    shown = [row for row in own if row["kind"] != "general"] + [row for row in own if row["kind"] == "general"]
    knows = table_rows.probe_accuracy(training)
    table = [
        ["", *(f"{row['task']}" for row in shown)],
        ["what the model says", *(number(row["base"], row["metric"]) for row in shown)],
        [table_rows.knows(training, probe), *(knows if row["kind"] == "training" else "" for row in shown)],
        ["what the tuned model says", *(number(row["tuned"], row["metric"]) for row in shown)],
        ["  gain", *(signed(row["difference"], row["metric"]) for row in shown)],
        ["  95 % interval", *(_bounds(row) for row in shown)],
        ["  p (Holm)", *(p_value(row["p_holm"]) for row in shown)],
    ]
    n = max((row["n"] for row in shown if row["kind"] != "general"), default=0)
    averages = formatting.average_rows(rows_of(verdict.get("averages", []), training))
    return "\n".join(
        [
            f"{training['run']}, seed {training['seed']}: {n} questions never trained on",
            formatting.plain(table),
            *(f"{row['suite']}: {row['base']} -> {row['tuned']}, {row['difference [95 %]']}" for row in averages),
            f"probe {probe['probe']}: {probe['method']}, layer {probe['layer']}, AUROC {table_rows.auroc(probe)}"
            + table_rows.elsewhere(training, probe),
            *_read_afterwards(training),
            *(fill(f"- {text}", 110, subsequent_indent="  ") for text, _ in findings(training, own, probe)),
        ]
    )


def _read_afterwards(training: dict[str, Any]) -> list[str]:
    """What probes read in the tuned model's states, where the config asks for a fresh one."""
    after = training.get("probes_after")
    if not after:
        return []
    found = (
        f"{after[name]['auroc']:.3f} by {whom}" for name, whom in (("frozen", "this probe"), ("fresh", "a new one"))
    )
    return [f"truth read from the tuned model's states, AUROC: {', '.join(found)}"]


def _bounds(row: dict[str, Any]) -> str:
    low, high = (signed(row[end], row["metric"]) for end in ("ci_low", "ci_high"))
    return f"[{low}, {high}]"
