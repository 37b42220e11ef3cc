"""The reward table: a frozen probe's reward for every allowed answer to every question."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from elkflow.common.errors import UserError
from elkflow.common.manifests import check_against_manifests, check_manifest
from elkflow.common.metrics import bootstrap, mean
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


def reward_table(pairs: ContrastPairs, odds: NDArray[np.float64]) -> tuple[pa.Table, dict[str, Any]]:
    """The reward of every answer, and how well the rewards agree with the labels.

    Where a pair asks about one answer (is this answer truthful?), each row is an answer to a question and its reward is
    the probability that it is truthful. Otherwise the rewards of a pair's two answers sum to 1.

    Returns:
        Table with columns id, rewards (in the order of the answers) and label (for diagnosis only; −1 where not exactly
        one answer is right), and facts: `gold_ceiling` is the accuracy of always giving the answer with the highest
        reward.

    Raises:
        UserError: an answer to a question was not scored.
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
    """Rows (question, answer) as ids, groups, labels [Q] and rewards [Q, A] of the questions."""
    assert pairs.shown is not None
    answers = int(pairs.shown.max()) + 1
    index_of = {question: index for index, question in enumerate(dict.fromkeys(pairs.questions))}
    rows = np.array([index_of[question] for question in pairs.questions])
    rewards, right = np.full((len(index_of), answers), np.nan), np.zeros((len(index_of), answers), dtype=int)
    rewards[rows, pairs.shown], right[rows, pairs.shown] = truthful, pairs.labels
    if np.isnan(rewards).any():
        row, answer = np.argwhere(np.isnan(rewards))[0]
        raise UserError(
            f"{pairs.files[0]}: question {list(index_of)[row]} has no row for answer {answer}; "
            "rewards need a wording with `shown: every`"
        )
    labels = np.where(right.sum(1) == 1, right.argmax(1), -1)
    groups = pairs.groups[np.unique(rows, return_index=True)[1]]
    return list(index_of), groups, labels, rewards
