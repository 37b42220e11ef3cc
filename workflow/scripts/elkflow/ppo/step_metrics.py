"""Metrics of a step: what its rollout shows of the policy, and what its updates did."""

import torch

from elkflow.ppo import objective
from elkflow.ppo.questions import Questions
from elkflow.ppo.rollout import Answers, Rollout


def means(updates: list[dict[str, float]]) -> dict[str, float]:
    """Means over optimiser steps, and how many there were."""
    return {"updates": float(len(updates))} | {
        name: sum(metrics[name] for metrics in updates) / len(updates) for name in (updates[0] if updates else ())
    }


def given_answers(batch: Answers, questions: Questions) -> list[int]:
    """Index of each response among its question's allowed answers, -1 for anything else."""
    answers = [questions.answers[row] for row in batch.rows]
    pairs = zip(batch.responses, answers, strict=True)
    return [allowed.index(text) if text in allowed else -1 for text, allowed in pairs]


def answer_metrics(batch: Answers, questions: Questions) -> dict[str, float]:
    """What a policy's answers show of it, labels not used."""
    count = len(batch.rows)
    answers = [questions.answers[row] for row in batch.rows]
    given = given_answers(batch, questions)
    shares = torch.tensor([given.count(index) / count for index in sorted(set(given))])
    return {
        "reward": float(batch.scores.mean()),
        "reward_std": float(batch.scores.std(correction=0)),
        "valid": sum(index >= 0 for index in given) / count,
        "yes_rate": sum(index == len(allowed) - 1 for index, allowed in zip(given, answers, strict=True)) / count,
        "answer_entropy": float(-(shares * shares.log()).sum()),
        "one_answer": max(given.count(index) for index in range(max(map(len, answers)))) / count,
    }


def preferred_share(batch: Answers, questions: Questions, preferred: list[int]) -> float:
    """Share of the batch's questions to which the rewards prefer the answer that the policy gives most often."""
    given = [index for index in given_answers(batch, questions) if index >= 0]
    most = max(set(given), key=given.count) if given else -1
    return sum(preferred[row] == most for row in batch.rows) / len(batch.rows)


def rollout_metrics(batch: Rollout, questions: Questions) -> dict[str, float]:
    """The same, and how far the policy is from the reference. KL is summed over the tokens of a response."""
    count = len(batch.rows)
    kl = {name: objective.kl(batch.logprobs, batch.reference, name) for name in ("k1", "k3")}
    return answer_metrics(batch, questions) | {
        "entropy": float(objective.masked_mean(batch.entropy, batch.mask)),
        "kl_k1": float(objective.masked_sum(kl["k1"], batch.mask) / count),
        "kl_k3": float(objective.masked_sum(kl["k3"], batch.mask) / count),
        "value": float(objective.masked_mean(batch.values, batch.mask)),
        "response_tokens": float(batch.mask.sum() / count),
    }


def gold_accuracy(batch: Answers, questions: Questions) -> float:
    """Share of answers that are the label's."""
    right = [questions.answers[row][questions.labels[row]] for row in batch.rows]
    return sum(text == label for text, label in zip(batch.responses, right, strict=True)) / len(right)
