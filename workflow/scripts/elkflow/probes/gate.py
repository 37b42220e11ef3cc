"""The gate: whether a policy may be trained on a probe, given the interval of its lead over each control."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from elkflow.common.errors import UserError
from elkflow.common.inference import all_metrics, jackknife
from elkflow.common.metrics import accuracy, as_columns, auroc, auroc_difference, calibrated_accuracy, ece
from elkflow.config.probe import ProbeSettings
from elkflow.probes.controls import Control


def control_table(
    controls: Sequence[Control], probe: NDArray, labels: NDArray, groups: NDArray, settings: ProbeSettings
) -> pd.DataFrame:
    """One row per control: its metrics, the probe's lead in AUROC, and whether that exceeds the margin.

    For a control of many draws the metrics are the median and the central 95 % of draws, and the lead's lower end is
    the probe's lower end minus the control's upper end. With one draw the lead's interval is a jackknife over the
    groups of both on the same rows.

    Args:
        probe: the probe's log-odds for the reward [N].
        labels: labels of the val rows [N].
        groups: groups of the val rows [N].
    """
    own = jackknife(auroc, probe, labels, groups=groups, log_odds=True)
    rows = []
    for control in controls:
        if len(control.log_odds) == 1:
            metrics = all_metrics(control.log_odds[0], labels, groups)
            lead = jackknife(auroc_difference, control.log_odds[0], probe, labels, groups=groups)[:3]
        else:
            metrics = _of_draws(control.log_odds, labels)
            lead = (
                own.value - metrics["auroc"],
                own.low - metrics["auroc_high"],
                own.high - metrics["auroc_low"],
            )
        rows.append(
            {
                "control": control.name,
                "draws": len(control.log_odds),
                **metrics,
                **as_columns({"lead": lead}),
                "margin": settings.gate.margin,
                "counts": control.name in settings.gate.against,
                "passed": lead[1] > settings.gate.margin,
                "about": control.about,
            }
        )
    return pd.DataFrame(rows)


def _of_draws(log_odds: NDArray, labels: NDArray) -> dict[str, float]:
    """Median and central 95 % of each metric over the draws of a control by chance [draws, N]."""
    found = {}
    for name, metric in {"auroc": auroc, "accuracy": accuracy, "calibrated_accuracy": calibrated_accuracy}.items():
        values = expit(log_odds) if name == "accuracy" else log_odds
        low, middle, high = np.quantile([float(metric(draw, labels)) for draw in values], [0.025, 0.5, 0.975])
        found[name] = (middle, low, high)
    return as_columns(found) | {"ece": float(np.median([ece(draw, labels) for draw in expit(log_odds)]))}


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
