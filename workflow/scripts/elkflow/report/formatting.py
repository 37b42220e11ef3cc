"""Tables for people: Markdown for files, plain lines for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from elkflow.common.metrics import is_share

BASELINES = {
    "majority": "always the more frequent answer",
    "word_overlap": "shared words",
    "bag_of_words": "bag of words",
    "zero_shot": "the model's own zero-shot answer",
    "random_directions": "random directions",
    "shuffled_labels": "shuffled labels",
    "untrained_model": "a probe on an untrained model",
}
"""Controls beside every probe, in the words of the report."""


def rows_of(evaluations: list[dict[str, Any]], training: dict[str, Any]) -> list[dict[str, Any]]:
    """The comparison's rows of one run and seed."""
    return [row for row in evaluations if (row["run"], row["seed"]) == (training["run"], training["seed"])]


def average_rows(averages: Sequence[Mapping[Any, Any]]) -> list[dict[str, str]]:
    """Suites' averages as cells of text."""
    return [
        {
            "run": row["run"],
            "seed": str(row["seed"]),
            "suite": f"{row['suite']}, average of {row['tasks']} tasks",
            "questions": str(row["n"]),
            "base": number(row["base"], "acc"),
            "tuned": number(row["tuned"], "acc"),
            "difference [95 %]": gain(row["difference"], row["ci_low"], row["ci_high"], "acc"),
        }
        for row in averages
    ]


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """A Markdown table; columns are the first row's keys."""
    if not rows:
        return "(nothing)\n"
    cells = [[str(value).replace("|", "\\|") for value in row.values()] for row in rows]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def turned(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """A wide table on its side: one column for each of `rows`."""
    if not rows:
        return []
    first, *names = rows[0]
    heads = [row[first] for row in rows]
    heads = [f"{head} ({index})" if heads.count(head) > 1 else head for index, head in enumerate(heads, 1)]
    return [{first: name} | {head: row[name] for head, row in zip(heads, rows, strict=True)} for name in names]


def plain(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def number(value: float, metric: str) -> str:
    """Accuracies in percent, other metrics as they are."""
    return f"{100 * value:.1f} %" if is_share(metric) else f"{value:.3f}"


def gain(value: float, low: float, high: float, metric: str) -> str:
    """A difference and its interval: `+41.2 [37.8, 44.6] points`."""
    if is_share(metric):
        return f"{100 * value:+.1f} [{100 * low:.1f}, {100 * high:.1f}] points"
    return f"{value:+.3f} [{low:.3f}, {high:.3f}]"


def p_value(value: float) -> str:
    """A p-value as papers print it."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def judgement(row: Any) -> str:
    """One word or two about a difference."""
    if row["within_noise"]:
        return "within noise"
    return "better" if (row["difference"] > 0) == bool(row["higher_is_better"]) else "worse"


def comparison_rows(comparison: Sequence[Mapping[Any, Any]]) -> list[dict[str, str]]:
    """The comparison as cells of text."""
    return [
        {
            "run": row["run"],
            "seed": str(row["seed"]),
            "task": row["task"],
            "questions": str(row["n"]),
            "metric": row["metric"],
            "base": number(row["base"], row["metric"]),
            "tuned": number(row["tuned"], row["metric"]),
            "difference [95 %]": gain(row["difference"], row["ci_low"], row["ci_high"], row["metric"]),
            "p": p_value(row["p_value"]),
            "p (Holm)": p_value(row["p_holm"]),
            "verdict": judgement(row),
        }
        for row in comparison
    ]


def probe_rows(probes: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Every probe and, under it, the datasets of its mixture and its baselines, as cells of text."""
    rows = []
    for probe in probes:
        rows.append(_probe_row(probe["probe"], f"probe: {probe['method']}, layer {probe['layer']}", probe))
        for name, entry in probe["datasets"].items():
            rows.append(_probe_row("", f"the probe on {name} alone ({entry['rows']} questions)", entry))
        rows += [_probe_row("", BASELINES.get(key, key), entry) for key, entry in probe["baselines"].items()]
    return rows


def _probe_row(probe: str, what: str, figures: dict[str, Any]) -> dict[str, str]:
    auroc, low, high = (figures.get(key) for key in ("auroc", "auroc_low", "auroc_high"))
    shown = "" if auroc is None else f"{auroc:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")
    accuracy = figures.get("accuracy")
    return {
        "probe": probe,
        "what decides": what,
        "AUROC [95 %]": shown,
        "accuracy": "" if accuracy is None else f"{100 * accuracy:.1f} %",
    }


def signed(value: float, metric: str) -> str:
    """A difference, in points where the metric is a share."""
    return f"{100 * value:+.1f}" if is_share(metric) else f"{value:+.3f}"
