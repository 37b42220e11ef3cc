"""Fitting of every method on every layer, and the scores of the fitted directions."""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from elkflow.common.cli import progress
from elkflow.common.errors import UserError
from elkflow.config.probe import Method, ProbeSettings
from elkflow.probes import methods
from elkflow.probes.contrast_pairs import ContrastPairs, Normalisation, assign_folds, split_groups
from elkflow.probes.methods import Direction

logger = logging.getLogger("elkflow")

UNSUPERVISED_METHODS = ("ccs", "vinc", "crc")


@dataclass
class FittedProbes:
    """One method on all layers. Scores of pair members include the bias: log-odds = [..., 1] − [..., 0]."""

    method: Method
    layers: list[int]
    weight: Tensor
    """[L, D]"""
    bias: Tensor
    """[L]"""
    facts: dict[str, NDArray]
    """Further results of the fit, each [L]."""
    selection: NDArray
    """Scores of the selection part [L, V, N, 2]."""
    val: NDArray
    """Scores of the val split [L, V, N, 2]."""


@dataclass
class ProbeData:
    """The rows that a probe is fitted, selected and reported on."""

    train: ContrastPairs
    val: ContrastPairs
    fit: NDArray[np.int64]
    """Rows of train that directions and normalisation are fitted on."""
    selection: NDArray[np.int64]
    """Rows of train on which layer, method and calibration are determined."""
    layers: list[int]
    device: torch.device = field(default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    @classmethod
    def of(cls, train: ContrastPairs, val: ContrastPairs, settings: ProbeSettings) -> "ProbeData":
        """Divide train into fit and selection part, and check both.

        Raises:
            UserError: train and val do not match, a layer does not exist, or a part has only one label.
        """
        if (train.layers, train.width) != (val.layers, val.width):
            raise UserError(f"{val.files[0]}: its layers differ from those of {train.files[0]}")
        if settings.layers and max(settings.layers) >= train.layers:
            raise UserError(f"layers: there is no layer {max(settings.layers)}; the model has 0 to {train.layers - 1}")
        shared = set(train.questions) & set(val.questions)
        if shared:
            raise UserError(f"train and val share {len(shared)} questions, e.g. {sorted(shared)[0]}")
        fit, selection = split_groups(train.groups, settings.selection, settings.seed)
        for name, rows in (("fit", fit), ("selection", selection)):
            if len(set(train.labels[rows])) < 2:
                raise UserError(
                    f"the {name} part of train has only label {train.labels[rows][0]}: {len(rows)} rows in "
                    f"{len(set(train.groups[rows]))} groups; use more groups or another `selection`"
                )
        return cls(train, val, fit, selection, settings.layers or list(range(train.layers)))

    def fitted_on_all(self) -> "ProbeData":
        """The same with all of train as the fit part, for the last fit of a chosen layer."""
        return dataclasses.replace(self, fit=np.arange(len(self.train)))


def member_scores(weight: Tensor, bias: Tensor, states: Tensor) -> NDArray:
    """Scores of pair members [L, V, N, 2] from weight [L, D], bias [L] and normalised states [L, V, N, 2, D]."""
    half = torch.stack([-bias, bias], -1)[:, None, None, :] / 2
    return (torch.einsum("lvnad,ld->lvna", states, weight) + half).cpu().numpy().astype(np.float64)


def pair_log_odds(members: NDArray) -> NDArray:
    """Log-odds of pairs [...] from scores of their members [..., 2]."""
    return members[..., 1] - members[..., 0]


def reward_log_odds(members: NDArray, ensembling: str) -> NDArray:
    """Log-odds [N] for the reward from member scores [V, N, 2]: averaged over wordings, or the first wording's."""
    odds = pair_log_odds(members)
    return odds.mean(0) if ensembling == "full" else odds[0]


def predictions(
    members: NDArray, labels: NDArray, groups: NDArray, ensembling: str
) -> tuple[NDArray, NDArray, NDArray]:
    """Predictions to evaluate: log-odds [..., M], labels [M] and groups [M] from member scores [..., V, N, 2].

    One prediction is, with `full`, a question with log-odds averaged over wordings; with `partial`, a question under
    one wording; with `none`, one member of a pair, with twice its score as log-odds, which is on the scale of pairs.
    """
    wordings = members.shape[-3]
    if ensembling == "full":
        return pair_log_odds(members).mean(-2), labels, groups
    if ensembling == "partial":
        return (
            pair_log_odds(members).reshape(*members.shape[:-3], -1),
            np.tile(labels, wordings),
            np.tile(groups, wordings),
        )
    both = np.stack([1 - labels, labels], -1).reshape(-1)
    flat = 2 * members.reshape(*members.shape[:-3], -1)
    return flat, np.tile(both, wordings), np.tile(np.repeat(groups, 2), wordings)


def fit_all(parts: ProbeData, settings: ProbeSettings) -> tuple[dict[str, FittedProbes], Normalisation]:
    """Fit every method of the settings on every layer; return them by name, and the normalisation of all layers."""
    chunks = parts.train.chunks(parts.layers, others=len(parts.val))
    found: dict[str, list[FittedProbes]] = {method: [] for method in settings.methods}
    statistics = []
    for layers in progress(chunks, "fitting probes"):
        norm, fit, selection, val = normalised_states(parts, layers, settings.normalise)
        statistics.append(norm)
        for method in settings.methods:
            direction = fit_method(method, fit, parts, settings)
            weight, bias = direction.weight, direction.bias
            facts = {name: numbers.cpu().numpy() for name, numbers in direction.facts.items()}
            results = (member_scores(weight, bias, selection), member_scores(weight, bias, val))
            found[method].append(FittedProbes(method, layers, weight.cpu(), bias.cpu(), facts, *results))
    norm = Normalisation(
        torch.cat([each.mean.cpu() for each in statistics]), torch.cat([each.scale.cpu() for each in statistics])
    )
    return {method: _concatenate(pieces) for method, pieces in found.items()}, norm


def normalised_states(
    parts: ProbeData, layers: Sequence[int], kind: str
) -> tuple[Normalisation, Tensor, Tensor, Tensor]:
    """Normalisation from the fit part, and normalised states [L, V, N, 2, D] of the fit, selection and val rows."""
    train = parts.train.states(layers, parts.device)
    fit = train[:, :, parts.fit]
    norm = Normalisation.of(fit, kind)
    return norm, norm(fit), norm(train[:, :, parts.selection]), norm(parts.val.states(layers, parts.device))


def fit_method(method: Method, fit: Tensor, parts: ProbeData, settings: ProbeSettings) -> Direction:
    """Fit one method on normalised states [L, V, N, 2, D] of the fit part, and set the sign if it is unsupervised."""
    wordings = fit.shape[1]
    members = fit.flatten(1, 2)
    negative, positive = members[:, :, 0], members[:, :, 1]
    labels = torch.as_tensor(parts.train.labels[parts.fit], device=fit.device).repeat(wordings)
    match method:
        case "logistic":
            folds = assign_folds(parts.train.groups[parts.fit], settings.logistic.folds, settings.seed)
            tiled = torch.as_tensor(folds, device=fit.device).repeat(wordings)
            return methods.logistic_path(positive - negative, labels, settings.logistic.l2, tiled)
        case "mass_mean":
            return methods.mass_mean(positive - negative, labels)
        case "lda":
            return methods.lda(positive - negative, labels)
        case "ccs":
            direction = methods.ccs(
                positive, negative, restarts=settings.ccs.restarts, l2=settings.ccs.l2, seed=settings.seed
            )
        case "vinc":
            direction = methods.vinc(positive, negative, wordings, **settings.vinc.model_dump())
        case "crc":
            direction = methods.crc(positive - negative)
    return methods.oriented(direction, positive - negative, _sign_reference(labels, parts, settings))


def _sign_reference(labels: Tensor, parts: ProbeData, settings: ProbeSettings) -> Tensor:
    """Reference [V·N] with which a direction's scores should correlate positively."""
    if settings.sign == "labels":
        return labels.float()
    if parts.train.zero_shot is None:
        raise UserError("sign: `model` needs the model's own answers, which the files of hidden states lack")
    odds = parts.train.zero_shot[:, parts.fit]
    return torch.as_tensor(odds - odds.mean(1, keepdims=True), device=labels.device).flatten().float()


def _concatenate(pieces: list[FittedProbes]) -> FittedProbes:
    first = pieces[0]
    return FittedProbes(
        first.method,
        [layer for piece in pieces for layer in piece.layers],
        torch.cat([piece.weight for piece in pieces]),
        torch.cat([piece.bias for piece in pieces]),
        {name: np.concatenate([piece.facts[name] for piece in pieces]) for name in first.facts},
        np.concatenate([piece.selection for piece in pieces]),
        np.concatenate([piece.val for piece in pieces]),
    )


def refit(fitted: FittedProbes, index: int, parts: ProbeData, settings: ProbeSettings) -> Normalisation:
    """Refit one layer on all of train, replacing the first fit in place; return the new normalisation.

    The selection scores remain those of the first fit, which was not fitted on these rows.
    """
    everything = parts.fitted_on_all()
    norm, fit, _, val = normalised_states(everything, [fitted.layers[index]], settings.normalise)
    direction = fit_method(fitted.method, fit, everything, settings)
    fitted.val[index] = member_scores(direction.weight, direction.bias, val)[0]
    fitted.weight[index], fitted.bias[index] = direction.weight[0].cpu(), direction.bias[0].cpu()
    for name, numbers in direction.facts.items():
        fitted.facts[name][index] = numbers[0].cpu().numpy()
    return Normalisation(norm.mean.cpu(), norm.scale.cpu())


def fit_platt(odds: NDArray, labels: NDArray) -> tuple[float, float]:
    """Slope and offset that calibrate log-odds: σ(slope · odds + offset) (Platt 1999, without label smoothing)."""
    spread = float(np.std(odds)) or 1.0
    scaled = torch.as_tensor(odds / spread)[None, :, None]
    weights = torch.ones(1, len(labels), dtype=torch.float64)
    weight, bias, _ = methods.logistic(scaled, torch.as_tensor(labels), torch.tensor([1e-4]), weights, tolerance=1e-8)
    return float(weight[0, 0, 0]) / spread, float(bias[0, 0])
