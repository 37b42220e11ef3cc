"""Frozen and fresh probe: can the truth still be read from the tuned model, and by the probe that rewarded it?"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from elkflow.common.errors import UserError
from elkflow.common.metrics import accuracy, auroc, bootstrap, resamples
from elkflow.config.probe import ProbeSettings
from elkflow.probes.contrast_pairs import ContrastPairs
from elkflow.probes.fitting import ProbeData, fit_all, pair_log_odds, refit
from elkflow.probes.saved_probe import Probe
from elkflow.probes.selection import choose_layers


def frozen_and_fresh(
    probe: Probe, settings: ProbeSettings, policy: str, train: ContrastPairs, val: ContrastPairs
) -> dict[str, dict[str, Any]]:
    """AUROC and accuracy on val of two probes on the tuned model's hidden states.

    `frozen` is the unchanged probe that rewarded the policy (missing if the policy is another model than the one the
    probe was fitted on). `fresh` is fitted by the same method, layer selection included, on the tuned model's states of
    train.

    Args:
        policy: name of the model that was tuned.
        train, val: contrast pairs with the tuned model's states, under the probe's wordings.

    Raises:
        UserError: the states were not read as the probe reads them.
    """
    found: dict[str, dict[str, Any]] = {}
    weights = resamples(len(val), settings.bootstrap, settings.seed, val.groups)
    if policy == settings.model:
        _check_reading(probe, val)
        odds = probe.log_odds(val.states([probe.layer])[0]).double().numpy()
        found["frozen"] = {"method": probe.facts["method"], "layer": probe.layer} | _metrics(odds, val.labels, weights)
    alone = settings.model_copy(update={"methods": [probe.facts["method"]], "reward": "best"})
    parts = ProbeData.of(train, val, alone)
    fitted, _ = fit_all(parts, alone)
    method, best = choose_layers(fitted, parts, alone)
    if alone.refit and not alone.calibrate:
        refit(fitted[method], best[method], parts, alone)
    odds = pair_log_odds(fitted[method].val[best[method]]).mean(0)
    layer = fitted[method].layers[best[method]]
    found["fresh"] = {"method": method, "layer": layer} | _metrics(odds, val.labels, weights)
    return found


def _check_reading(probe: Probe, val: ContrastPairs) -> None:
    """Check that layers and token positions of the states mean the same as for the frozen probe."""
    for key, name in (("layer_convention", "layers"), ("position", "position")):
        if probe.facts[key] != val.metadata[0].get(name):
            raise UserError(
                f"{val.files[0]}: {key.replace('_', ' ')} is {val.metadata[0].get(name)!r}, "
                f"the probe's {probe.facts[key]!r}"
            )


def _metrics(odds: NDArray[np.float64], labels: NDArray, weights: NDArray) -> dict[str, float]:
    area = bootstrap(auroc, odds, labels, weights=weights)
    right = bootstrap(accuracy, expit(odds), labels, weights=weights)
    return {
        f"{name}{end}": value
        for name, interval in (("auroc", area), ("accuracy", right))
        for end, value in zip(("", "_low", "_high"), interval, strict=True)
    }
