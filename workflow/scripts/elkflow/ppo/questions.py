"""The prompts a policy is trained or evaluated on, and their rewards."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from elkflow.common.errors import UserError
from elkflow.common.files import read_table
from elkflow.models.tokens import encode_answer, encode_prompt
from elkflow.rewards.lookup import TableRewards

Rewards = Callable[[Sequence[str], Sequence[str]], Tensor]
"""`rewards(prompts, responses)` -> float32 [B]."""


@dataclass(frozen=True)
class Questions:
    """N prompts with their allowed answers. Labels are for diagnosis: training must not use them."""

    ids: list[str]
    prompts: list[str]
    answers: list[list[str]]
    labels: list[int]
    tokens: list[list[int]]
    """Token ids of each prompt."""

    def __len__(self) -> int:
        return len(self.ids)


def read_questions(path: Path, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, context: int) -> Questions:
    """Prompts of one split.

    Args:
        max_new_tokens: every allowed answer must fit.
        context: tokens the model can take.

    Raises:
        UserError: an answer or a prompt is too long; the message names its row.
    """
    table = read_table(path, ["id", "prompt", "answers", "label"])
    if not len(table):
        raise UserError(f"{path}: has no rows")
    ids, prompts, answers, labels = (table[name].to_pylist() for name in ("id", "prompt", "answers", "label"))
    lengths = {text: len(encode_answer(tokenizer, text)) for text in {text for row in answers for text in row}}
    tokens = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    for name, row, ask in zip(ids, answers, tokens, strict=True):
        if long := next((text for text in row if lengths[text] > max_new_tokens), None):
            raise UserError(
                f"{path}: {name}: the answer {long!r} is {lengths[long]} tokens, ppo.max_new_tokens is {max_new_tokens}"
            )
        if len(ask) + max_new_tokens > context:
            raise UserError(
                f"{path}: {name}: {len(ask)} tokens and the answer exceed the policy's context of {context}"
            )
    return Questions(ids, prompts, answers, labels, tokens)


def preferred_answers(questions: Questions, rewards: Rewards) -> list[int] | None:
    """Index of every question's answer with the highest reward; None where rewards are not a table."""
    if not isinstance(rewards, TableRewards):
        return None
    found = []
    for prompt, answers in zip(questions.prompts, questions.answers, strict=True):
        values = [rewards.table[prompt][text.strip()] for text in answers]
        found.append(values.index(max(values)))
    return found


def table_rewards(path: Path, questions: Questions, invalid: float) -> TableRewards:
    """The reward table of the same split.

    Raises:
        UserError: it has other rows than the questions, or another number of answers.
    """
    table = read_table(path, ["id", "rewards"])
    rewards = dict(zip(table["id"].to_pylist(), table["rewards"].to_pylist(), strict=True))
    for name, answers in zip(questions.ids, questions.answers, strict=True):
        if len(rewards.get(name, ())) != len(answers):
            raise UserError(f"{path}: {name}: {len(rewards.get(name, ()))} rewards for {len(answers)} answers")
    return TableRewards(questions.prompts, questions.answers, [rewards[name] for name in questions.ids], invalid)
