"""Selection of layer and method on the selection part of train."""

import numpy as np
from numpy.typing import NDArray

from elkflow.common.metrics import auroc
from elkflow.config.probe import ProbeSettings
from elkflow.probes.fitting import FittedProbes, ProbeData, predictions


def selection_auroc(fitted: FittedProbes, parts: ProbeData, ensembling: str) -> NDArray:
    """AUROC of each layer on the selection part [L]."""
    rows = parts.selection
    odds, labels, _ = predictions(fitted.selection, parts.train.labels[rows], parts.train.groups[rows], ensembling)
    return np.array([auroc(layer, labels) for layer in odds])


def choose_layers(
    fitted: dict[str, FittedProbes], parts: ProbeData, settings: ProbeSettings
) -> tuple[str, dict[str, int]]:
    """The method that becomes the reward, and each method's best layer (as an index into its layers).

    Both have the highest AUROC on the selection part; ties go to the lower layer and the method listed first.
    """
    values = {method: selection_auroc(each, parts, settings.ensembling) for method, each in fitted.items()}
    best = {method: int(np.argmax(aurocs)) for method, aurocs in values.items()}
    ranked = max(fitted, key=lambda method: values[method][best[method]])
    return (ranked if settings.reward == "best" else settings.reward), best
