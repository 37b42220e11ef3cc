"""The gate: whether a policy may be trained on a probe, given the interval of its lead over each control."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from elkflow.common.errors import UserError
from elkflow.common.metrics import (
    Interval,
    accuracy,
    as_columns,
    auroc,
    bootstrap,
    calibrated_accuracy,
    ece,
    paired_bootstrap,
)
from elkflow.config.probe import ProbeSettings
from elkflow.probes.controls import Control


def control_table(
    controls: Sequence[Control],
    probe: NDArray,
    labels: NDArray,
    weights: NDArray[np.float32],
    settings: ProbeSettings,
) -> pd.DataFrame:
    """One row per control: its metrics, the probe's lead in AUROC, and whether that reaches the margin.

    For a control of many draws the metrics are the median and the central 95 % of draws, and the lead's lower end is
    the probe's lower end minus the control's upper end. With one draw the lead is bootstrapped on the same rows.

    Args:
        probe: the probe's log-odds for the reward [N].
        labels: labels of the val rows [N].
        weights: resamples of the val rows [n, N].
    """
    own = bootstrap(auroc, probe, labels, weights=weights)
    rows = []
    for control in controls:
        metrics = _metrics(control.log_odds, labels, weights)
        if len(control.log_odds) == 1:
            lead = paired_bootstrap(control.log_odds[0], probe, metric=auroc, labels=labels, weights=weights)
        else:
            other = metrics["auroc"]
            lead = Interval(own.value - other.value, own.low - other.high, own.high - other.low)
        rows.append(
            {
                "control": control.name,
                "draws": len(control.log_odds),
                **as_columns(metrics),
                **as_columns({"lead": lead}),
                "margin": settings.gate.margin,
                "counts": control.name in settings.gate.against,
                "passed": lead.low >= settings.gate.margin,
                "about": control.about,
            }
        )
    return pd.DataFrame(rows)


def _metrics(log_odds: NDArray, labels: NDArray, weights: NDArray[np.float32]) -> dict[str, Interval]:
    kinds = {"auroc": auroc, "accuracy": accuracy, "calibrated_accuracy": calibrated_accuracy, "ece": ece}
    found = {}
    for name, metric in kinds.items():
        values = expit(log_odds) if name in ("accuracy", "ece") else log_odds
        if len(values) == 1:
            found[name] = bootstrap(metric, values[0], labels, weights=weights)
        else:
            draws = [float(metric(draw, labels)) for draw in values]
            low, middle, high = np.quantile(draws, [0.025, 0.5, 0.975])
            found[name] = Interval(float(middle), float(low), float(high))
    return found


def admit(table: pd.DataFrame, method: str, layer: int, settings: ProbeSettings) -> bool:
    """Whether the probe leads every control of the gate by the margin.

    Raises:
        UserError: it does not, and the settings do not allow a weak probe; the message shows the table.
    """
    counted = table[table["counts"]]
    passed = bool(counted["passed"].all())
    if not passed and not settings.allow_weak_probe:
        failed = ", ".join(counted.loc[~counted["passed"], "control"])
        raise UserError(
            f"the probe ({method}, layer {layer}) does not lead {failed} by {settings.gate.margin} AUROC, "
            f"so no policy is trained on it; set `allow_weak_probe: true` to use it anyway\n{format_controls(counted)}"
        )
    return passed


def format_controls(table: pd.DataFrame) -> str:
    """The table as text for the log."""
    lines = [f"{'control':<18} {'AUROC':>22} {'lead of the probe':>24}  enough"]
    for _, row in table.iterrows():
        own = f"{row['auroc']:.3f} [{row['auroc_low']:.3f}, {row['auroc_high']:.3f}]"
        lead = f"{row['lead']:+.3f} [{row['lead_low']:+.3f}, {row['lead_high']:+.3f}]"
        lines.append(f"{row['control']:<18} {own:>22} {lead:>24}  {'yes' if row['passed'] else 'NO'}")
    return "\n".join(lines)
