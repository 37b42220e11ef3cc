"""What a probe has to beat: classifiers of the text alone, the model's own answers, and probes without information.

Every control scores the val rows; its metrics come with intervals like the probe's.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from elkflow.common.cli import progress
from elkflow.common.inference import jackknife
from elkflow.common.metrics import as_columns, auroc
from elkflow.config.probe import Method, ProbeSettings
from elkflow.probes import methods
from elkflow.probes.contrast_pairs import ContrastPairs
from elkflow.probes.fitting import (
    FittedProbes,
    ProbeData,
    fit_all,
    member_scores,
    normalised_states,
    predictions,
    refit,
    reward_log_odds,
)
from elkflow.probes.selection import choose_layers


@dataclass(frozen=True)
class Control:
    """A control's log-odds on val [draws, N] (one draw unless it is random), and a description."""

    name: str
    log_odds: NDArray
    about: str


def text_controls(parts: ProbeData, train: pd.DataFrame, val: pd.DataFrame) -> list[Control]:
    """Majority, word overlap and bag of words, fitted on the fit part without hidden states.

    Args:
        train, val: source rows; word overlap is between their text columns (three words or more on average).
    """
    labels = parts.train.labels[parts.fit]
    share = float(labels.mean())
    constant = np.full((1, len(parts.val)), np.log(share / (1 - share)))
    found = [Control("majority", constant, f"always the more frequent label of the fit part ({share:.3f} positive)")]
    columns = _text_columns(train)
    if len(columns) >= 2:
        odds = _fitted_log_odds(
            _word_overlap(train, parts.train, columns)[parts.fit], labels, _word_overlap(val, parts.val, columns)
        )
        about = f"logistic regression on the share of words that {' and '.join(columns)} have in common"
        found.append(Control("word_overlap", odds[None], about))
    counter = CountVectorizer(ngram_range=(1, 2), min_df=2, binary=True, token_pattern=r"(?u)\b\w+\b")
    words = counter.fit_transform([parts.train.prompts[row] for row in parts.fit])
    odds = _fitted_log_odds(words, labels, counter.transform(parts.val.prompts))
    found.append(Control("bag_of_words", odds[None], "logistic regression on the prompt's words and word pairs"))
    return found


def _fitted_log_odds(train, labels: NDArray, val) -> NDArray:
    return LogisticRegression(C=1.0, max_iter=1000).fit(train, labels).decision_function(val)


def _text_columns(table: pd.DataFrame) -> list[str]:
    """String columns of three words or more on average (a mixture's rows lack those of other datasets)."""
    known = {name: table[name].dropna() for name in table.columns}
    texts = [name for name, column in known.items() if len(column) and pd.api.types.is_string_dtype(column)]
    return [name for name in texts if np.mean([len(str(text).split()) for text in known[name].head(200)]) >= 3]


def _word_overlap(table: pd.DataFrame, pairs: ContrastPairs, columns: Sequence[str]) -> NDArray:
    """Share of each text's words that occur in each other text [N, features]; also with the answer shown, if any."""
    rows = table.set_index(table["id"].astype(str)).loc[[str(question) for question in pairs.questions]]
    words = {
        name: [set(re.findall(r"\w+", text.lower())) for text in rows[name].fillna("").astype(str)] for name in columns
    }
    shares = [
        [len(a & b) / max(1, len(a)) for a, b in zip(words[first], words[second], strict=True)]
        for first in columns
        for second in columns
        if first != second
    ]
    features = np.array(shares).T
    if pairs.shown is None:
        return features
    shown = 2.0 * pairs.shown[:, None] - 1
    return np.concatenate([features, shown, shown * features], 1)


def zero_shot_control(parts: ProbeData, ensembling: str) -> list[Control]:
    """The model's own answer: log P(answer 1) − log P(answer 0) after the prompt; an empty list for an encoder."""
    odds = parts.val.zero_shot
    if odds is None:
        return []
    seen = odds.mean(0) if ensembling == "full" else odds[0]
    return [Control("zero_shot", seen[None], "the model's own log-odds of its two answers")]


def untrained_control(
    train: ContrastPairs, val: ContrastPairs, method: Method, settings: ProbeSettings
) -> tuple[Control, pd.DataFrame]:
    """The probe's own method, layer selection included, on the hidden states of a model with random weights.

    What it finds comes from the words and the architecture, not from training.

    Returns:
        The control, and a table of its AUROC on val by layer, with intervals.

    Raises:
        UserError: the states do not fit the settings.
    """
    alone = settings.model_copy(update={"methods": [method], "reward": method})
    parts = ProbeData.of(train, val, alone)
    fitted, _ = fit_all(parts, alone)
    _, best = choose_layers(fitted, parts, alone)
    table = []
    for layer, members in zip(fitted[method].layers, fitted[method].val, strict=True):
        odds = reward_log_odds(members, settings.ensembling)
        found = jackknife(auroc, odds, val.labels, groups=val.groups, log_odds=True)
        table.append({"layer": layer, "part": "val", **as_columns({"auroc": found})})
    if settings.refit and not settings.calibrate:
        refit(fitted[method], best[method], parts, alone)
    odds = reward_log_odds(fitted[method].val[best[method]], settings.ensembling)
    about = (
        f"{method} on the states of the untrained model, at its own best layer {fitted[method].layers[best[method]]}"
    )
    return Control("untrained_model", odds[None], about), pd.DataFrame(table).assign(method="untrained_model")


def chance_controls(
    parts: ProbeData, fitted: FittedProbes, settings: ProbeSettings
) -> tuple[list[Control], pd.DataFrame]:
    """Random directions, and logistic probes on shuffled labels, each drawn `settings.draws` times.

    Like the real probe, every draw selects its layer (and a random direction its sign) on the selection part, where
    shuffled labels are shuffled too. So the spread of draws shows what selection alone can achieve.

    Args:
        fitted: the probe's method on all layers; a logistic probe's penalty is used for the shuffled labels.

    Returns:
        Both controls, and a table of their AUROC on val by layer (median and spread of the draws).
    """
    draws, generator = settings.draws, torch.Generator().manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    shuffled = np.stack([rng.permutation(parts.train.labels) for _ in range(draws)])  # [draws, rows of train]
    pieces: dict[str, list[tuple[NDArray, NDArray]]] = {"random_directions": [], "shuffled_labels": []}
    l2 = float(np.median(fitted.facts["l2"])) if "l2" in fitted.facts else 0.1
    for layers in progress(parts.train.chunks(parts.layers, others=len(parts.val)), "controls"):
        _, fit, selection, val = normalised_states(parts, layers, settings.normalise)
        width = fit.shape[-1]
        directions = torch.randn(len(layers), draws, width, generator=generator).to(fit)
        found = _scores_of_draws(directions, torch.zeros_like(directions[..., 0]), selection, val)
        pieces["random_directions"].append(found)
        members = fit.flatten(1, 2)
        labels = torch.as_tensor(shuffled[:, parts.fit], device=fit.device).repeat(1, fit.shape[1])
        weight, bias, _ = methods.logistic(
            members[:, :, 1] - members[:, :, 0], labels, torch.full((draws,), l2), torch.ones_like(labels)
        )
        pieces["shuffled_labels"].append(_scores_of_draws(weight, bias, selection, val))
    truth = np.repeat(parts.train.labels[parts.selection][None], draws, 0)
    about = {
        "random_directions": "a random direction on every layer, with layer and sign selected as for the probe",
        "shuffled_labels": "logistic probes on shuffled train labels, with the layer selected on shuffled labels",
    }
    controls, tables = [], []
    for name, runs in pieces.items():
        labels_seen = truth if name == "random_directions" else shuffled[:, parts.selection]
        on_selection, on_val = (np.concatenate([run[part] for run in runs], 1) for part in (0, 1))
        odds, by_layer = _best_of_layers(on_selection, on_val, labels_seen, settings, parts)
        controls.append(Control(name, odds, f"{about[name]}; {draws} draws"))
        low, middle, high = np.quantile(by_layer, [0.025, 0.5, 0.975], axis=0)
        layered = {"layer": parts.layers, "part": "val", "auroc": middle, "auroc_low": low, "auroc_high": high}
        tables.append(pd.DataFrame({"method": name, **layered}))
    return controls, pd.concat(tables, ignore_index=True)


def _scores_of_draws(weight: Tensor, bias: Tensor, selection: Tensor, val: Tensor) -> tuple[NDArray, NDArray]:
    """Member scores [draws, L, V, N, 2] on selection part and val, from weight [L, draws, D] and bias [L, draws]."""
    draws = range(weight.shape[1])
    on_selection, on_val = (
        np.stack([member_scores(weight[:, i], bias[:, i], states) for i in draws]) for states in (selection, val)
    )
    return on_selection, on_val


def _best_of_layers(
    selection: NDArray, val: NDArray, labels: NDArray, settings: ProbeSettings, parts: ProbeData
) -> tuple[NDArray, NDArray]:
    """Each draw's log-odds on val [draws, N] at its best layer, and its AUROC on val at every layer [draws, L].

    The best layer is the one whose AUROC on the selection part is furthest from 0.5; below 0.5 the sign is flipped.

    Args:
        selection, val: member scores [draws, L, V, N, 2].
        labels: each draw's labels of the selection part [draws, N].
    """
    groups = parts.train.groups[parts.selection]
    chosen, by_layer = [], []
    for draw, truth in enumerate(labels):
        odds, judged_labels, _ = predictions(selection[draw], truth, groups, settings.ensembling)
        values = np.array([auroc(layer, judged_labels) for layer in odds])
        sign = np.where(values >= 0.5, 1.0, -1.0)
        best = int(np.argmax(np.abs(values - 0.5)))
        reported = np.stack([reward_log_odds(layer, settings.ensembling) for layer in val[draw]]) * sign[:, None]
        chosen.append(reported[best])
        by_layer.append([auroc(layer, parts.val.labels) for layer in reported])
    return np.stack(chosen), np.array(by_layer)
