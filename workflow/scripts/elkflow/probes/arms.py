"""Arms: controls that take a probe's place in the rewards, so that only what it found is missing.

A policy trained on any reward that varies from question to question changes. What it owes to the truth in the probe is
what it gains beyond one that was trained on a direction of the same layer, normalisation and confidence that is not
the truth. `gold_labels` is the other end: the probe's confidence with every answer right, in `rewards.score_answers`.
"""

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from elkflow.config.probe import ProbeSettings
from elkflow.probes.fitting import (
    FittedProbes,
    ProbeData,
    fit_method,
    member_scores,
    normalised_states,
    reward_log_odds,
)


def replace_direction(fitted: FittedProbes, at: int, parts: ProbeData, settings: ProbeSettings) -> None:
    """Put the arm's direction in place of the probe's, in place, with its scores on selection part and val.

    Args:
        fitted: the chosen method on all layers, refitted or not.
        at: index of the chosen layer in it.
        parts: as the direction was fitted: with `refit`, of all of train.
    """
    if settings.arm in (None, "gold_labels"):
        return
    _, fit, selection, val = normalised_states(parts, [fitted.layers[at]], settings.normalise)
    if settings.arm == "random_direction":
        weight = torch.randn(1, fit.shape[-1], generator=torch.Generator().manual_seed(settings.seed)).to(fit)
        bias = torch.zeros(1).to(fit)
    else:
        labels = np.random.default_rng(settings.seed).permutation(parts.train.labels)
        train = dataclasses.replace(parts.train, labels=labels)
        direction = fit_method(fitted.method, fit, dataclasses.replace(parts, train=train), settings)
        weight, bias = direction.weight, direction.bias
    own = fitted.weight[at : at + 1].to(fit), fitted.bias[at : at + 1].to(fit)
    confidence = [mean_confidence(*each, selection, settings.ensembling) for each in (own, (weight, bias))]
    scale = confidence[0] / confidence[1] if confidence[1] else 1.0  # a direction that says nothing stays as it is
    weight, bias = weight * scale, bias * scale
    fitted.weight[at], fitted.bias[at] = weight[0].cpu(), bias[0].cpu()
    fitted.selection[at], fitted.val[at] = (member_scores(weight, bias, states)[0] for states in (selection, val))


def mean_confidence(weight: Tensor, bias: Tensor, states: Tensor, ensembling: str) -> float:
    """Mean of |log-odds| of the rewards, from weight [1, D], bias [1] and normalised states [1, V, N, 2, D]."""
    return float(np.abs(reward_log_odds(member_scores(weight, bias, states)[0], ensembling)).mean())


def gold_log_odds(odds: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Log-odds [N] as large as the probe's, with the sign of the labels [N]: right about every pair."""
    return np.abs(odds) * (2 * labels - 1)
