"""Rewards looked up in a table that was scored before training."""

from collections.abc import Sequence

import torch
from torch import Tensor

from elkflow.common.errors import UserError


class TableRewards:
    """Reward of each allowed answer to each prompt, from a table."""

    def __init__(
        self,
        prompts: Sequence[str],
        answers: Sequence[Sequence[str]],
        rewards: Sequence[Sequence[float]],
        invalid: float = -1.0,
    ) -> None:
        """Args:
            prompts: N prompts, as the policy sees them.
            answers: A allowed answers per prompt, [N][A].
            rewards: reward of each answer, [N][A].
            invalid: reward of every other response.

        Raises:
            UserError: a prompt occurs twice with different rewards.
        """
        self.invalid = invalid
        self.table: dict[str, dict[str, float]] = {}
        for prompt, texts, values in zip(prompts, answers, rewards, strict=True):
            row = {text.strip(): float(value) for text, value in zip(texts, values, strict=True)}
            if self.table.setdefault(prompt, row) != row:
                raise UserError(f"a prompt occurs twice with different rewards: {prompt[:200]!r}")

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """Rewards [B], float32; whitespace around a response is ignored.

        Raises:
            UserError: a prompt is not in the table.
        """
        values = []
        for prompt, response in zip(prompts, responses, strict=True):
            row = self.table.get(prompt)
            if row is None:
                raise UserError(f"the reward table has no prompt {prompt[:200]!r}")
            values.append(row.get(response.strip(), self.invalid))
        return torch.tensor(values, dtype=torch.float32)
