"""The prompts a policy is trained or evaluated on, and their rewards."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
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
    groups: list[str]
    """Questions of a group are not independent."""

    def __len__(self) -> int:
        return len(self.ids)

    def of(self, rows: Sequence[int]) -> "Questions":
        """Some of the questions."""
        return Questions(*([getattr(self, each.name)[row] for row in rows] for each in fields(self)))


def read_questions(path: Path, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, context: int) -> Questions:
    """Prompts of one split.

    Args:
        max_new_tokens: every allowed answer must fit.
        context: tokens the model can take.

    Raises:
        UserError: an answer or a prompt is too long; the message names its row.
    """
    names = ["id", "prompt", "answers", "label", "group"]
    table = read_table(path, names)
    if not len(table):
        raise UserError(f"{path}: has no rows")
    ids, prompts, answers, labels, groups = (table[name].to_pylist() for name in names)
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
    return Questions(ids, prompts, answers, labels, tokens, groups)


def hold_back(questions: Questions, rows: int) -> tuple[Questions, Questions]:
    """Questions to train on, and at least `rows` or a quarter of others to choose the weights to keep by.

    Whole groups are held back, the same ones whatever the run's seed.

    Raises:
        UserError: there is only one group.
    """
    order = list(dict.fromkeys(questions.groups))
    random.Random(0).shuffle(order)
    sizes, back, wanted = Counter(questions.groups), set[str](), min(rows, len(questions) // 4)
    for group in order[:-1]:
        if sum(sizes[each] for each in back) >= max(wanted, 1):
            break
        back.add(group)
    if not back:
        raise UserError("ppo.keep: `best` is chosen on questions that are not trained on, and all are of one group")
    parts = ([row for row, group in enumerate(questions.groups) if (group in back) == held] for held in (False, True))
    kept, held = (questions.of(part) for part in parts)
    return kept, held


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
