"""Baselines without training: the answer with the highest reward, and the best of N sampled answers.

Prasad et al., "Features as Rewards" (arXiv 2602.10067), compare both with reinforcement learning. Over a closed set of
answers, best-of-N needs no sampling: its expected accuracy follows exactly from the untrained model's probabilities.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from elkflow.common.errors import UserError
from elkflow.common.inference import mean_value


def best_of_n(probabilities: NDArray, rewards: NDArray, samples: int) -> NDArray:
    """Probability [B, A] that best-of-N selects each answer.

    Args:
        probabilities: [B, A], of sampling each allowed answer; the remainder is the probability of any other response,
            whose reward is below that of every allowed answer.
        rewards: [B, A].
        samples: N.

    Returns:
        [B, A]; answers of equal reward share in proportion to their probabilities, as the first of the best samples is
        chosen; rows sum to 1 minus the probability that no sample is an allowed answer.
    """
    chances = np.empty_like(probabilities)
    for answer in range(probabilities.shape[1]):
        better = (probabilities * (rewards > rewards[:, [answer]])).sum(axis=1)
        tied = (probabilities * (rewards == rewards[:, [answer]])).sum(axis=1)
        selected = (1 - better).clip(0) ** samples - (1 - better - tied).clip(0) ** samples
        chances[:, answer] = selected * np.divide(
            probabilities[:, answer], tied, out=np.zeros_like(tied), where=tied > 0
        )
    return chances


def without_rl(questions: pd.DataFrame, counts: Sequence[int]) -> pd.DataFrame:
    """Accuracy and cost of the untrained model, with and without selection by the reward.

    Args:
        questions: columns scores (log-probability of each answer), rewards (of each answer), label, group.
        counts: values of N.

    Returns:
        Columns method, n (samples or answers compared), accuracy, low, high (95 %, by groups), answered
        (fraction of questions that end with an allowed answer), forward_passes (sequences per question, by policy and
        reward model together, each sample run separately), forward_passes_shared (its expected value where all samples
        of one token come from one pass and each distinct answer is scored once).
    """
    scores, rewards = (np.stack(list(questions[name])).astype(float) for name in ("scores", "rewards"))
    labels, probabilities = questions["label"].to_numpy(int), np.exp(scores)
    answers = scores.shape[1]
    right = np.arange(answers) == labels[:, None]
    everything = np.ones_like(probabilities)
    cases = [
        ("untrained model's likelier answer", 1, _one_hot_argmax(scores), 1.0, 1.0),
        ("answer with the higher reward", answers, best_of_n(everything, rewards, 1), float(answers), float(answers)),
    ]
    for count in counts:
        distinct = float((1 - (1 - probabilities) ** count).sum(axis=1).mean())
        cases.append(("best of N samples", count, best_of_n(probabilities, rewards, count), 2.0 * count, 1 + distinct))
    rows = []
    for method, count, chances, passes, shared in cases:
        value, low, high, _ = mean_value((chances * right).sum(axis=1), questions["group"].to_numpy())
        rows.append(
            {
                "method": method,
                "n": count,
                "accuracy": value,
                "low": low,
                "high": high,
                "answered": float(chances.sum(axis=1).mean()),
                "forward_passes": passes,
                "forward_passes_shared": shared,
            }
        )
    return pd.DataFrame(rows)


def _one_hot_argmax(scores: NDArray) -> NDArray:
    """One at each row's highest score, zero elsewhere."""
    return np.eye(scores.shape[1])[scores.argmax(axis=1)]


def join_by_question(samples: pd.DataFrame, rewards: pd.DataFrame, prompts: pd.DataFrame, wording: str) -> pd.DataFrame:
    """One row per question with its scores, rewards, label and group.

    Raises:
        UserError: a question has no reward.
    """
    rows = samples.loc[samples["task"] == wording, ["id", "scores", "label"]]
    known = rows.merge(rewards[["id", "rewards"]].astype({"id": str}), on="id").merge(
        prompts[["id", "group"]].astype({"id": str}), on="id"
    )
    if missing := sorted(set(rows["id"]) - set(known["id"])):
        raise UserError(f"question {missing[0]!r} has no reward")
    return known
