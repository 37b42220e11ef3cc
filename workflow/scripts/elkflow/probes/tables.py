"""A probe's results as tables: by layer, method, wording, dataset and row."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from elkflow.common.inference import all_metrics, jackknife, share
from elkflow.common.metrics import as_columns, auroc, ece
from elkflow.config.probe import ProbeSettings
from elkflow.probes.contrast_pairs import ContrastPairs
from elkflow.probes.fitting import (
    UNSUPERVISED_METHODS,
    FittedProbes,
    ProbeData,
    pair_log_odds,
    predictions,
    reward_log_odds,
)

METRIC_NAMES = ("auroc", "accuracy", "calibrated_accuracy", "ece", "brier")


def sign_source(method: str, settings: ProbeSettings) -> str:
    """What decided the sign of a method's direction, in words."""
    if method not in UNSUPERVISED_METHODS:
        return "by the labels it was fitted on"
    return "by labels of the fit part" if settings.sign == "labels" else "by the model's own zero-shot answers"


def count_groups(pairs: ContrastPairs, rows: NDArray | None = None) -> int:
    """Number of groups among `rows`; unset: among all."""
    return len(np.unique(pairs.groups if rows is None else pairs.groups[rows]))


def layer_table(fitted: dict[str, FittedProbes], parts: ProbeData, settings: ProbeSettings) -> pd.DataFrame:
    """Accuracy and AUROC with intervals, and ECE, for every method and layer, on the selection part and on val."""
    rows = []
    for part in ("selection", "val"):
        labels, groups = _labels_and_groups(part, parts)
        for method, each in fitted.items():
            odds, truth, clusters = predictions(getattr(each, part), labels, groups, settings.ensembling)
            for index, layer in enumerate(each.layers):
                probabilities = expit(odds[index])
                metrics = as_columns(
                    {
                        "accuracy": share((probabilities > 0.5) == (truth == 1), clusters),
                        "auroc": jackknife(auroc, odds[index], truth, groups=clusters, log_odds=True),
                    }
                ) | {"ece": float(ece(probabilities, truth))}
                facts = {name: numbers[index] for name, numbers in each.facts.items()}
                rows.append({"method": method, "layer": layer, "part": part, **metrics, **facts})
    return pd.DataFrame(rows)


def _labels_and_groups(part: str, parts: ProbeData) -> tuple[NDArray, NDArray]:
    if part == "val":
        return parts.val.labels, parts.val.groups
    return parts.train.labels[parts.selection], parts.train.groups[parts.selection]


def method_table(
    fitted: dict[str, FittedProbes], best: dict[str, int], parts: ProbeData, settings: ProbeSettings
) -> pd.DataFrame:
    """Each method at its selected layer: all metrics on val and, prefixed `selection_`, on the selection part."""
    rows = []
    for method, each in fitted.items():
        row: dict[str, Any] = {
            "method": method,
            "layer": each.layers[best[method]],
            "sign": sign_source(method, settings),
        }
        for part, prefix in (("val", ""), ("selection", "selection_")):
            odds, truth, clusters = predictions(
                getattr(each, part)[best[method]], *_labels_and_groups(part, parts), settings.ensembling
            )
            row |= {f"{prefix}{name}": value for name, value in all_metrics(odds, truth, clusters).items()}
        rows.append(row)
    return pd.DataFrame(rows)


def wording_table(chosen: FittedProbes, at: int, parts: ProbeData, settings: ProbeSettings) -> pd.DataFrame:
    """The chosen probe under each wording alone: how much its result depends on the wording."""
    rows = []
    for index, wording in enumerate(settings.wordings()):
        odds = pair_log_odds(chosen.val[at, index])
        rows.append({"wording": wording, **all_metrics(odds, parts.val.labels, parts.val.groups)})
    return pd.DataFrame(rows)


def member_table(name: str, odds: NDArray, parts: ProbeData) -> pd.DataFrame:
    """Metrics of the reward's log-odds [N] on all val rows and, in a mixture, on those of each dataset."""
    val, rows = parts.val, [{"dataset": name, "rows": len(parts.val)}]
    chosen = [np.arange(len(val))]
    for member in dict.fromkeys(val.datasets if val.datasets is not None else ()):
        chosen.append(np.flatnonzero(val.datasets == member))
        rows.append({"dataset": member, "rows": len(chosen[-1])})
    for row, index in zip(rows, chosen, strict=True):
        row |= all_metrics(odds[index], val.labels[index], val.groups[index])
    return pd.DataFrame(rows)


def score_table(
    fitted: dict[str, FittedProbes], best: dict[str, int], odds: NDArray, parts: ProbeData, settings: ProbeSettings
) -> pd.DataFrame:
    """Label of every val row, the reward's log-odds, and those of each method at its selected layer."""
    columns = {"id": parts.val.ids, "group": parts.val.groups, "label": parts.val.labels, "log_odds": odds}
    for method, each in fitted.items():
        columns[f"log_odds_{method}"] = reward_log_odds(each.val[best[method]], settings.ensembling)
    if parts.val.zero_shot is not None:
        columns["log_odds_zero_shot"] = parts.val.zero_shot.mean(0)
    return pd.DataFrame(columns)
