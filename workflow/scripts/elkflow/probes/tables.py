"""A probe's figures as tables: by layer, method, wording, dataset and row."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from elkflow.common.metrics import accuracy, auroc, bootstrap, ece, flat, resamples, summary
from elkflow.config.probe import ProbeSettings
from elkflow.probes.contrast_pairs import Pairs
from elkflow.probes.fitting import UNSUPERVISED, Fitted, Parts, judged, log_odds, reward_log_odds

METRICS = ("auroc", "accuracy", "calibrated_accuracy", "ece", "brier")


def _sign(method: str, settings: ProbeSettings) -> str:
    if method not in UNSUPERVISED:
        return "by the labels it was fitted on"
    return "by labels of the fit part" if settings.sign == "labels" else "by the model's own zero-shot answers"


def _count(pairs: Pairs, rows: NDArray | None = None) -> int:
    return len(np.unique(pairs.groups if rows is None else pairs.groups[rows]))


def layer_table(fitted: dict[str, Fitted], parts: Parts, settings: ProbeSettings) -> pd.DataFrame:
    """Accuracy, AUROC and ECE with intervals of every method on every layer, on the selection part and on val."""
    rows = []
    for part in ("selection", "val"):
        labels, groups = _truth(part, parts)
        weights = None
        for method, each in fitted.items():
            odds, truth, clusters = judged(getattr(each, part), labels, groups, settings.ensembling)
            if weights is None:
                weights = resamples(len(truth), settings.bootstrap, settings.seed, clusters)
            for index, layer in enumerate(each.layers):
                probabilities = expit(odds[index])
                metrics = {
                    "accuracy": bootstrap(accuracy, probabilities, truth, weights=weights),
                    "auroc": bootstrap(auroc, odds[index], truth, weights=weights),
                    "ece": bootstrap(ece, probabilities, truth, weights=weights),
                }
                told = {name: numbers[index] for name, numbers in each.facts.items()}
                rows.append({"method": method, "layer": layer, "part": part, **flat(metrics), **told})
    return pd.DataFrame(rows)


def _truth(part: str, parts: Parts) -> tuple[NDArray, NDArray]:
    if part == "val":
        return parts.val.labels, parts.val.groups
    return parts.train.labels[parts.selection], parts.train.groups[parts.selection]


def method_table(
    fitted: dict[str, Fitted], best: dict[str, int], parts: Parts, settings: ProbeSettings
) -> pd.DataFrame:
    """Each method at its chosen layer: every metric on val, and (prefixed `selection_`) where it was chosen."""
    rows = []
    for method, each in fitted.items():
        row: dict[str, Any] = {"method": method, "layer": each.layers[best[method]], "sign": _sign(method, settings)}
        for part, prefix in (("val", ""), ("selection", "selection_")):
            odds, truth, clusters = judged(getattr(each, part)[best[method]], *_truth(part, parts), settings.ensembling)
            weights = resamples(len(truth), settings.bootstrap, settings.seed, clusters)
            row |= {f"{prefix}{name}": value for name, value in flat(summary(odds, truth, weights)).items()}
        rows.append(row)
    return pd.DataFrame(rows)


def wording_table(
    chosen: Fitted, at: int, parts: Parts, settings: ProbeSettings, weights: NDArray[np.float32]
) -> pd.DataFrame:
    """The chosen probe under each wording alone: how much the way of asking matters."""
    rows = []
    for index, wording in enumerate(settings.wordings()):
        odds = log_odds(chosen.val[at, index])
        rows.append({"wording": wording, **flat(summary(odds, parts.val.labels, weights))})
    return pd.DataFrame(rows)


def member_table(name: str, odds: NDArray, parts: Parts, settings: ProbeSettings) -> pd.DataFrame:
    """The reward's log-odds [N] on all val rows and, of a mixture, on those of each dataset in it."""
    val, rows = parts.val, [{"dataset": name, "rows": len(parts.val)}]
    chosen = [np.arange(len(val))]
    for member in dict.fromkeys(val.datasets if val.datasets is not None else ()):
        chosen.append(np.flatnonzero(val.datasets == member))
        rows.append({"dataset": member, "rows": len(chosen[-1])})
    for row, index in zip(rows, chosen, strict=True):
        weights = resamples(len(index), settings.bootstrap, settings.seed, val.groups[index])
        row |= flat(summary(odds[index], val.labels[index], weights))
    return pd.DataFrame(rows)


def score_table(
    fitted: dict[str, Fitted], best: dict[str, int], odds: NDArray, parts: Parts, settings: ProbeSettings
) -> pd.DataFrame:
    """Every val row: its label, the reward's log-odds, and those of each method at its own layer."""
    columns = {"id": parts.val.ids, "group": parts.val.groups, "label": parts.val.labels, "log_odds": odds}
    for method, each in fitted.items():
        columns[f"log_odds_{method}"] = reward_log_odds(each.val[best[method]], settings.ensembling)
    if parts.val.zero_shot is not None:
        columns["log_odds_zero_shot"] = parts.val.zero_shot.mean(0)
    return pd.DataFrame(columns)
