"""The reward table: what a frozen probe gives every allowed answer of every question."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from elkflow.common.errors import UserError
from elkflow.common.metrics import bootstrap, mean
from elkflow.probes import saved_probe
from elkflow.probes.contrast_pairs import ContrastPairs
from elkflow.probes.saved_probe import Probe

ROWS = 4096  # scored at a time


def shard_rows(total: int, shard: int, shards: int) -> tuple[int, int]:
    """First row and the one after the last of shard `shard` (from 1) of `shards`: sizes differ by one at most."""
    return total * (shard - 1) // shards, total * shard // shards


def pair_log_odds(
    probe: Probe, pairs: ContrastPairs, folder: Path | str = "the probe", rows: tuple[int, int] | None = None
) -> NDArray[np.float64]:
    """Log-odds [N] that the positive answer of each pair is right; of the pairs in `rows` if given.

    Raises:
        UserError: the states are not the probe's (see `artefact.check_states`), or their answers are others.
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
    pieces = [probe.log_odds(states[:, start : start + ROWS]) for start in range(0, states.shape[1], ROWS)]
    return torch.cat(pieces).double().numpy() if pieces else np.empty(0)


def reward_table(pairs: ContrastPairs, odds: NDArray[np.float64]) -> tuple[pa.Table, dict[str, Any]]:
    """Rewards of every answer, and how good they are against the labels.

    Where pairs ask about the answers themselves (is this one truthful?), each row is one answer of a question, and its
    reward is the probability that it is; else the pair's two answers share one probability.

    Returns:
        Table with id, rewards (in the order of the answers) and label (for diagnosis only; −1: no one answer is right),
        and facts: the gold ceiling is the accuracy of a policy that always gives the answer with the higher reward.

    Raises:
        UserError: a question does not have all its answers scored.
    """
    positive = torch.sigmoid(torch.from_numpy(odds)).numpy()
    if pairs.shown is None:
        ids, groups, labels = pairs.ids, pairs.groups, pairs.labels
        rewards = np.stack([1 - positive, positive], -1)
    else:
        ids, groups, labels, rewards = _by_question(pairs, positive)
    known = labels >= 0
    picked = (rewards.argmax(1) == labels)[known]
    ceiling = bootstrap(mean, picked, groups=np.asarray(groups)[known]) if known.any() else None
    table = pa.table(
        {
            "id": pa.array(ids, pa.string()),
            "rewards": pa.array(rewards.astype(np.float32).tolist(), pa.list_(pa.float32())),
            "label": pa.array(labels, pa.int64()),
        }
    )
    facts = {
        "rows": len(ids),
        "gold_ceiling": dict(zip(("value", "low", "high"), ceiling, strict=True)) if ceiling else None,
        "mean_reward_of_best": float(rewards.max(1).mean()),
        "ties": float((rewards.max(1) == rewards.min(1)).mean()),
    }
    return table, facts


def _by_question(pairs: ContrastPairs, truthful: NDArray) -> tuple[list[str], NDArray, NDArray, NDArray]:
    """Rows of (question, answer) gathered into ids, groups, labels and rewards [Q, A] of questions."""
    assert pairs.shown is not None
    answers = int(pairs.shown.max()) + 1
    number = {question: index for index, question in enumerate(dict.fromkeys(pairs.questions))}
    rows = np.array([number[question] for question in pairs.questions])
    rewards, right = np.full((len(number), answers), np.nan), np.zeros((len(number), answers), dtype=int)
    rewards[rows, pairs.shown], right[rows, pairs.shown] = truthful, pairs.labels
    if np.isnan(rewards).any():
        row, answer = np.argwhere(np.isnan(rewards))[0]
        raise UserError(
            f"{pairs.files[0]}: question {list(number)[row]} has no row about its answer {answer}; rewards need "
            "a wording with `shown: every`"
        )
    labels = np.where(right.sum(1) == 1, right.argmax(1), -1)
    groups = pairs.groups[np.unique(rows, return_index=True)[1]]
    return list(number), groups, labels, rewards
