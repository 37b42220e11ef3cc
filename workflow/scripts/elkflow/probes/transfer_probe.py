"""Does a probe know truth, or its own dataset? One probe, tested on the val rows of others."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch

from elkflow.common.errors import UserError
from elkflow.common.metrics import flat, resamples, summary
from elkflow.probes.contrast_pairs import ContrastPairs, Normalisation
from elkflow.probes.saved_probe import Probe, check_states


def transfer_table(
    probe: Probe, targets: Mapping[str, ContrastPairs], *, folder: Path, resample: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """One row a target and way of normalising, with every metric and its interval.

    `own` statistics are the target's (they need no labels, and are what Burns et al. 2022 do), `stored` ones those the
    probe was fitted under: what a reward model would use.

    Args:
        targets: name of each probe whose val rows are tested on, its main wording.

    Raises:
        UserError: a target's states are another model's, or lie on other layers.
    """
    rows = []
    for name, pairs in targets.items():
        check_states(probe, folder, pairs.metadata[0], pairs.files[0])
        if (pairs.layers, pairs.width) != (probe.facts["layers"], len(probe.weight)):
            raise UserError(f"{pairs.files[0]}: {pairs.layers} layers of width {pairs.width} do not fit the probe")
        states = pairs.states([probe.layer])[:, :1]  # [1, 1, N, 2, D]: the main wording
        weights = resamples(len(pairs), resample, seed, pairs.groups)
        for statistics in ("stored", "own"):
            used = probe
            if statistics == "own":
                norm = Normalisation.of(states, probe.facts["normalisation"]["kind"])
                used = Probe(norm.mean[0], norm.scale[0], probe.weight, probe.bias, probe.facts)
            odds = torch.as_tensor(used.log_odds(states[0])).double().numpy()
            row = {"tested_on": name, "statistics": statistics, "rows": len(pairs)}
            rows.append(row | flat(summary(odds, pairs.labels, weights)))
    return pd.DataFrame(rows)
