"""Log-odds of a split's contrast pairs under a frozen probe: of all of them, or of one shard."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from elkflow.common.errors import UserError
from elkflow.common.manifests import check_against_manifests, check_manifest
from elkflow.probes import saved_probe
from elkflow.probes.contrast_pairs import ContrastPairs
from elkflow.probes.prompt_match import check_prompt_format
from elkflow.probes.saved_probe import Probe

CHUNK = 4096  # rows scored at a time


def read_probe_and_pairs(folder: Path, prompts: list[Path], states: list[Path]) -> tuple[Probe, ContrastPairs]:
    """The probe in `folder`, and the contrast pairs it scores.

    Args:
        prompts, states: one file per wording that the probe reads.

    Raises:
        UserError: a file is damaged, or the prompts are worded differently from those the probe was fitted on.
    """
    check_manifest(folder / "manifest.json")
    check_against_manifests(*prompts, *states)
    probe = saved_probe.load_probe(folder)
    check_prompt_format(probe, folder, prompts[0])
    return probe, ContrastPairs.read(prompts, states, labelled=False)


def shard_rows(total: int, shard: int, shards: int) -> tuple[int, int]:
    """Half-open range of the rows in shard `shard` of `shards`, counted from 1; sizes differ by at most one."""
    return total * (shard - 1) // shards, total * shard // shards


def pair_log_odds(
    probe: Probe, pairs: ContrastPairs, folder: Path | str = "the probe", rows: tuple[int, int] | None = None
) -> NDArray[np.float64]:
    """Log-odds [N] that the positive answer of each pair is right, for all pairs or those in the range `rows`.

    Raises:
        UserError: the states do not suit the probe (see `saved_probe.check_states`), or its answers are others.
    """
    for path, metadata in zip(pairs.files, pairs.metadata, strict=True):
        saved_probe.check_states(probe, folder, metadata, path)
    if probe.facts["answers"] is not None and pairs.answers != probe.facts["answers"]:
        raise UserError(
            f"{pairs.files[0]}: answers are {pairs.answers}, the probe was fitted on {probe.facts['answers']}"
        )
    if (pairs.layers, pairs.width) != (probe.facts["layers"], len(probe.weight)):
        raise UserError(f"{pairs.files[0]}: {pairs.layers} layers of width {pairs.width} do not fit the probe")
    states = pairs.states([probe.layer], rows=rows)[0]  # [V, N, 2, D]
    pieces = [probe.log_odds(states[:, start : start + CHUNK]) for start in range(0, states.shape[1], CHUNK)]
    return torch.cat(pieces).double().numpy() if pieces else np.empty(0)
