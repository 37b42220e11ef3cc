"""Numbers and tables as text: Markdown for files, aligned columns for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from elkflow.common.metrics import is_proportion
from elkflow.summary.diagnosis import OUTCOMES


def value(number: float, metric: str) -> str:
    """A metric's value; proportions in percent."""
    return f"{100 * number:.1f} %" if is_proportion(metric) else f"{number:.3f}"


NONE = "–"
"""Stands for an interval or p-value that the rows do not give, such as those of a single group."""
FIXED = "†"
"""Marks an interval without width."""
FOOTNOTE = (
    f"{FIXED} The same in every group of questions, as one answer to everything is where a group holds as many of "
    "either answer: fixed by design, so that the interval has no width."
)


def interval(low: float | None, high: float | None, ends: str = "{:.1f}", scale: float = 100) -> str:
    """`[37.8, 44.6]`; marked where it has no width, a dash where there is none."""
    if low is None or high is None or low != low or high != high:
        return NONE
    return f"[{ends.format(scale * low)}, {ends.format(scale * high)}]" + (FIXED if low == high else "")


def fixed(row: Mapping[Any, Any]) -> bool:
    """Whether an interval of a comparison's row has no width."""
    ends = [(row[f"{name}_low"], row[f"{name}_high"]) for name in ("base", "tuned", "ci")]
    return any(low is not None and low == high for low, high in ends)


def gain(row: Mapping[Any, Any], metric: str) -> str:
    """A row's difference and its interval: `+41.2 [37.8, 44.6] points`."""
    if is_proportion(metric):
        return f"{100 * row['difference']:+.1f} {interval(row['ci_low'], row['ci_high'])} points"
    return f"{row['difference']:+.3f} {interval(row['ci_low'], row['ci_high'], '{:.3f}', 1)}"


def signed(number: float, metric: str) -> str:
    """A difference, in percentage points where the metric is a proportion."""
    return f"{100 * number:+.1f}" if is_proportion(metric) else f"{number:+.3f}"


def percent(number: float, low: float | None, high: float | None) -> str:
    """A proportion and its interval: `81.2 % [78.0, 84.1]`."""
    return f"{100 * number:.1f} % {interval(low, high)}"


def p_value(number: float | None) -> str:
    """A p-value as papers print it."""
    if number is None or number != number:
        return NONE
    return "< 0.001" if number < 0.001 else f"{number:.3f}"


def auroc(probe: Mapping[str, Any]) -> str:
    """AUROC and its interval: `0.972 [0.952, 0.986]`."""
    return f"{probe['auroc']:.3f} {interval(probe.get('auroc_low'), probe.get('auroc_high'), '{:.3f}', 1)}"


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


def few_as_columns(rows: Sequence[dict[str, str]], few: int = 4) -> Sequence[dict[str, str]]:
    """A few rows with many cells each read better as columns."""
    return rows if len(rows) > few else transpose(rows)


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
