"""Numbers and tables as text: Markdown for files, aligned columns for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from elkflow.common.metrics import is_proportion
from elkflow.summary.diagnosis import OUTCOMES


def value(number: float, metric: str) -> str:
    """A metric's value; proportions in percent."""
    return f"{100 * number:.1f} %" if is_proportion(metric) else f"{number:.3f}"


def gain(row: Mapping[Any, Any], metric: str) -> str:
    """A row's difference and its interval: `+41.2 [37.8, 44.6] points`."""
    change, low, high = row["difference"], row["ci_low"], row["ci_high"]
    if is_proportion(metric):
        return f"{100 * change:+.1f} [{100 * low:.1f}, {100 * high:.1f}] points"
    return f"{change:+.3f} [{low:.3f}, {high:.3f}]"


def signed(number: float, metric: str) -> str:
    """A difference, in percentage points where the metric is a proportion."""
    return f"{100 * number:+.1f}" if is_proportion(metric) else f"{number:+.3f}"


def percent(number: float, low: float, high: float) -> str:
    """A proportion and its interval: `81.2 % [78.0, 84.1]`."""
    return f"{100 * number:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def p_value(number: float) -> str:
    """A p-value as papers print it."""
    return "< 0.001" if number < 0.001 else f"{number:.3f}"


def auroc(probe: Mapping[str, Any]) -> str:
    """AUROC and its interval: `0.972 [0.952, 0.986]`."""
    return f"{probe['auroc']:.3f} [{probe['auroc_low']:.3f}, {probe['auroc_high']:.3f}]"


def outcome(key: str | None) -> str:
    """An outcome in words; empty where a training has none."""
    return OUTCOMES[key].name if key else ""


def judgement(row: Mapping[Any, Any]) -> str:
    """`better`, `worse` or `within noise`."""
    if row["within_noise"]:
        return "within noise"
    return "better" if (row["difference"] > 0) == bool(row["higher_is_better"]) else "worse"


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table; the first row's keys are its columns."""
    if not rows:
        return "(nothing)\n"
    cells = [[str(cell).replace("|", "\\|") for cell in row.values()] for row in rows]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def transpose(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """A wide table on its side: one column for each of `rows`, headed by its first cell."""
    if not rows:
        return []
    first, *names = rows[0]
    heads = [row[first] for row in rows]
    heads = [f"{head} ({index})" if heads.count(head) > 1 else head for index, head in enumerate(heads, 1)]
    return [{first: name} | {head: row[name] for head, row in zip(heads, rows, strict=True)} for name in names]


def align(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
