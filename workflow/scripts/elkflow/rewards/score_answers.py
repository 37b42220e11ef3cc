"""The reward table: a frozen probe's reward for every allowed answer to every question."""

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from elkflow.common.errors import UserError
from elkflow.common.files import number
from elkflow.common.inference import share
from elkflow.probes.arms import gold_log_odds
from elkflow.probes.contrast_pairs import ContrastPairs


def reward_table(
    pairs: ContrastPairs, odds: NDArray[np.float64], arm: str | None = None
) -> tuple[pa.Table, dict[str, Any]]:
    """The reward of every answer, and how well the rewards agree with the labels.

    Where a pair asks about one answer (is this answer truthful?), each row is an answer to a question and its reward is
    the probability that it is truthful. Otherwise the rewards of a pair's two answers sum to 1.

    Args:
        odds: the probe's log-odds of every pair [N].
        arm: of the probe; `gold_labels` is the only one whose rewards know the labels.

    Returns:
        Table with columns id, rewards (in the order of the answers) and label (for diagnosis only; −1 where not exactly
        one answer is right), and facts: `gold_ceiling` is the accuracy of always giving the answer with the highest
        reward.

    Raises:
        UserError: an answer to a question was not scored.
    """
    if arm == "gold_labels":
        odds = gold_log_odds(odds, pairs.labels)
    positive = torch.sigmoid(torch.from_numpy(odds)).numpy()
    if pairs.shown is None:
        ids, groups, labels = pairs.ids, pairs.groups, pairs.labels
        rewards = np.stack([1 - positive, positive], -1)
    else:
        ids, groups, labels, rewards = _by_question(pairs, positive)
    known = labels >= 0
    picked = (rewards.argmax(1) == labels)[known]
    ceiling = share(picked, np.asarray(groups)[known]) if known.any() else None
    table = pa.table(
        {
            "id": pa.array(ids, pa.string()),
            "rewards": pa.array(rewards.astype(np.float32).tolist(), pa.list_(pa.float32())),
            "label": pa.array(labels, pa.int64()),
        }
    )
    facts = {
        "rows": len(ids),
        "gold_ceiling": {key: number(getattr(ceiling, key)) for key in ("value", "low", "high")} if ceiling else None,
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
