"""Baselines without training: the answer with the highest reward, and the best of N sampled answers.

Prasad et al., "Features as Rewards" (arXiv 2602.10067), compare both with reinforcement learning. Over a closed set of
answers, best-of-N needs no sampling: its expected accuracy follows exactly from the untrained model's probabilities.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from elkflow.common.errors import UserError
from elkflow.common.metrics import bootstrap, mean


def best_of_n(probabilities: NDArray, rewards: NDArray, samples: int) -> NDArray:
    """Probability [B, A] that best-of-N selects each answer.

    Args:
        probabilities: [B, A], of sampling each allowed answer; the remainder is the probability of any other response,
            whose reward is below that of every allowed answer.
        rewards: [B, A].
        samples: N.

    Returns:
        [B, A]; rows sum to 1 minus the probability that no sample is an allowed answer.
    """
    order = np.argsort(-rewards, axis=1, kind="stable")
    better = np.cumsum(np.take_along_axis(probabilities, order, axis=1), axis=1).clip(max=1.0)
    missed = np.concatenate(
        [np.ones((len(better), 1)), (1 - better) ** samples], axis=1
    )  # none of the k best was sampled
    chances = np.empty_like(probabilities)
    np.put_along_axis(chances, order, missed[:, :-1] - missed[:, 1:], axis=1)
    return chances


def without_rl(questions: pd.DataFrame, counts: Sequence[int], seed: int = 0) -> pd.DataFrame:
    """Accuracy and cost of the untrained model, with and without selection by the reward.

    Args:
        questions: columns scores (log-probability of each answer), rewards (of each answer), label, group.
        counts: values of N.

    Returns:
        Columns method, n (samples or answers compared), accuracy, low, high (95 %, bootstrap over groups), answered
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
        value, low, high = bootstrap(
            mean, (chances * right).sum(axis=1), seed=seed, groups=questions["group"].to_numpy()
        )
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
