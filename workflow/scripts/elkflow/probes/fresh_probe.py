"""Frozen and fresh probe: can the truth still be read from the tuned model, and by the probe that rewarded it?"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elkflow.common.errors import UserError
from elkflow.common.files import number
from elkflow.common.inference import jackknife, share
from elkflow.common.metrics import as_columns, auroc, auroc_difference
from elkflow.config.probe import ProbeSettings
from elkflow.probes.contrast_pairs import ContrastPairs
from elkflow.probes.fitting import ProbeData, fit_all, pair_log_odds, refit
from elkflow.probes.saved_probe import Probe
from elkflow.probes.selection import choose_layers
from elkflow.probes.transfer_probe import adapted


def frozen_and_fresh(
    probe: Probe, settings: ProbeSettings, policy: str, train: ContrastPairs, val: ContrastPairs
) -> dict[str, dict[str, Any]]:
    """AUROC and accuracy on val of two probes on the tuned model's hidden states.

    `frozen` is the unchanged probe that rewarded the policy (missing if the policy is another model than the one the
    probe was fitted on). `fresh` is fitted by the same method, layer selection included, on the tuned model's states of
    train. `lost` is by how much the fresh probe's AUROC exceeds the frozen one's on the same rows (missing with
    `frozen`). Intervals leave out one group after another; their ends are null where there are fewer than two groups.

    Args:
        policy: name of the model that was tuned.
        train, val: contrast pairs with the tuned model's states, under the probe's wordings.

    Raises:
        UserError: the states were not read as the probe reads them.
    """
    found: dict[str, dict[str, Any]] = {}
    frozen = None
    if policy == settings.model:
        _check_reading(probe, val)
        frozen = probe.log_odds(val.states([probe.layer])[0]).double().numpy()
        found["frozen"] = {"method": probe.facts["method"], "layer": probe.layer} | _metrics(frozen, val)
    alone = settings.model_copy(update={"methods": [probe.facts["method"]], "reward": "best"})
    parts = ProbeData.of(train, val, alone)
    fitted, _ = fit_all(parts, alone)
    method, best = choose_layers(fitted, parts, alone)
    if alone.refit and not alone.calibrate:
        refit(fitted[method], best[method], parts, alone)
    odds = pair_log_odds(fitted[method].val[best[method]]).mean(0)
    layer = fitted[method].layers[best[method]]
    found["fresh"] = {"method": method, "layer": layer} | _metrics(odds, val)
    if frozen is not None:
        lost = jackknife(auroc_difference, frozen, odds, val.labels, groups=val.groups)
        found["lost"] = {name: number(value) for name, value in as_columns({"auroc": lost}).items()}
    return found


def read_off_domain(
    probes: Mapping[str, Probe], base: ContrastPairs, tuned: ContrastPairs
) -> dict[str, dict[str, Any]]:
    """AUROC on the same rows of probes fitted on other questions, before and after training, and its change.

    Each reads the states under their own normalisation, as its own questions' says nothing about these.

    Args:
        probes: by name.
        base, tuned: val rows with the states of the model before and after it was tuned.

    Raises:
        UserError: the states were not read as a probe reads them.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, probe in probes.items():
        odds = {}
        for when, pairs in (("before", base), ("after", tuned)):
            _check_reading(probe, pairs)
            states = pairs.states([probe.layer])[:, :1]
            odds[when] = adapted(probe, states).log_odds(states[0]).double().numpy()
        change = jackknife(auroc_difference, odds["before"], odds["after"], tuned.labels, groups=tuned.groups)
        found[name] = {when: _metrics(each, tuned) for when, each in odds.items()}
        found[name]["change"] = {key: number(value) for key, value in as_columns({"auroc": change}).items()}
    return found


def _check_reading(probe: Probe, val: ContrastPairs) -> None:
    """Check that layers and token positions of the states mean the same as for the frozen probe."""
    for key, name in (("layer_convention", "layers"), ("position", "position")):
        if probe.facts[key] != val.metadata[0].get(name):
            raise UserError(
                f"{val.files[0]}: {key.replace('_', ' ')} is {val.metadata[0].get(name)!r}, "
                f"the probe's {probe.facts[key]!r}"
            )


def _metrics(odds: NDArray[np.float64], val: ContrastPairs) -> dict[str, float | None]:
    area = jackknife(auroc, odds, val.labels, groups=val.groups, log_odds=True)
    right = share((odds > 0) == (val.labels == 1), val.groups)
    return {name: number(value) for name, value in as_columns({"auroc": area, "accuracy": right}).items()}
