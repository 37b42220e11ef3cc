"""Transfer: one probe tested on the val rows of others, to tell whether it knows truth or only its own dataset."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from torch import Tensor

from elkflow.common.errors import UserError
from elkflow.common.inference import all_metrics
from elkflow.probes.contrast_pairs import ContrastPairs, Normalisation
from elkflow.probes.saved_probe import Probe, check_states


def transfer_table(probe: Probe, targets: Mapping[str, ContrastPairs], *, folder: Path) -> pd.DataFrame:
    """One row per target and normalisation, with all metrics and their intervals.

    `own` statistics are the target's (they need no labels, as in Burns et al. 2022); `stored` ones are those the probe
    was fitted with, which a reward model would use.

    Args:
        targets: name of each other probe to its val rows in its main wording.
        folder: the probe's folder, for messages.

    Raises:
        UserError: a target's states are of another model, or of another number of layers or width.
    """
    rows = []
    for name, pairs in targets.items():
        check_states(probe, folder, pairs.metadata[0], pairs.files[0])
        if (pairs.layers, pairs.width) != (probe.facts["layers"], len(probe.weight)):
            raise UserError(f"{pairs.files[0]}: {pairs.layers} layers of width {pairs.width} do not fit the probe")
        states = pairs.states([probe.layer])[:, :1]  # [1, 1, N, 2, D]: the main wording
        for statistics in ("stored", "own"):
            used = adapted(probe, states) if statistics == "own" else probe
            odds = used.log_odds(states[0]).double().numpy()
            row = {"tested_on": name, "statistics": statistics, "rows": len(pairs)}
            rows.append(row | all_metrics(odds, pairs.labels, pairs.groups))
    return pd.DataFrame(rows)


def adapted(probe: Probe, states: Tensor) -> Probe:
    """The probe with the normalisation of other states [1, 1, N, 2, D], which needs no labels (Burns et al. 2022)."""
    norm = Normalisation.of(states, probe.facts["normalisation"]["kind"])
    return Probe(norm.mean[0], norm.scale[0], probe.weight, probe.bias, probe.facts)
