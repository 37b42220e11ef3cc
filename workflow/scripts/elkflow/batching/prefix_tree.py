"""Many token sequences in few forward passes: prefix trees under a tree-shaped attention mask, or plain padded lines.

The sequences of one question (its prompt followed by each answer) differ in their last token or two, and questions
rendered from one template, or about one sentence, open alike. In a causal model a token's states depend on its
predecessors only, so a common opening has to be computed once. `tree_lines` lays sequences out as tries in which a
token sees exactly its ancestors, at its own depth as position: every state is what a forward over the single sequence
gives, at a fraction of the tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Position = Literal["last", "first", "penultimate", "mean"]
TokenIds = list[int]


@dataclass(frozen=True)
class PromptWithAnswers:
    """One example as token ids: its row in the file, its prompt, and the answers that may follow it."""

    row: int
    prompt: TokenIds
    answers: list[TokenIds]


@dataclass
class Line:
    """One line of a batch, one entry a token in `ids`, `depth` (position) and `parent` (-1: none; parents come first).

    The sequence that ends in slot `slots[i]` (row × answers + answer) has its last prompt token and its answer's
    tokens in the columns `tails[i]`. `source` is what the encoder of an encoder-decoder reads.
    """

    ids: TokenIds = field(default_factory=list)
    depth: TokenIds = field(default_factory=list)
    parent: TokenIds = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    tails: list[TokenIds] = field(default_factory=list)
    source: TokenIds = field(default_factory=list)

    def append(self, tokens: TokenIds, node: int = -1) -> TokenIds:
        """Hang a chain of tokens below `node`; return its columns."""
        start = len(self.ids)
        first = self.depth[node] + 1 if node >= 0 else 0
        self.ids += tokens
        self.depth += range(first, first + len(tokens))
        self.parent += [node, *range(start, start + len(tokens) - 1)][: len(tokens)]
        return list(range(start, len(self.ids)))

    def answer(self, slot: int, tail: TokenIds) -> None:
        """Note where a sequence ends."""
        self.slots.append(slot)
        self.tails.append(tail)


def tree_lines(questions: Sequence[PromptWithAnswers], width: float, longest: int) -> list[Line]:
    """Tries over neighbouring questions in the order of their token ids.

    A question joins the trie before it while that saves work: `shared` tokens less through the matrix products
    (about 24 width² operations each) against attention over a longer line (8 width operations for each of new × old
    pairs of tokens, at about a third of the speed of a matrix product).

    Args:
        width: the model's hidden size; infinite where attention does not grow with the line (see `windows`).
        longest: most tokens in a trie of several questions.
    """
    lines: list[Line] = []
    before: TokenIds = []
    path: TokenIds = []
    for question in sorted(questions, key=lambda question: question.prompt):
        prompt, answers = question.prompt, sum(map(len, question.answers))
        shared = common_prefix(before, prompt) if lines else 0
        new, old = len(prompt) - shared + answers, len(lines[-1].ids) if lines else 0
        if not lines or new + old > longest or shared * width <= new * old:
            lines.append(Line())
            shared = 0
        line = lines[-1]
        path = path[:shared]
        path += line.append(prompt[shared:], path[-1] if path else -1)
        for index, answer in enumerate(question.answers):
            slot = question.row * len(question.answers) + index
            line.answer(slot, [path[-1], *line.append(answer, path[-1])])
        before = prompt
    return lines


def common_prefix(first: TokenIds, second: TokenIds) -> int:
    """How many leading tokens two sequences have in common."""
    count = 0
    for left, right in zip(first, second, strict=False):
        if left != right:
            break
        count += 1
    return count


def unshared_lines(questions: Sequence[PromptWithAnswers], closing: Sequence[int] = ()) -> list[Line]:
    """A line for each prompt and answer, with `closing` tokens (EOS, SEP) behind it."""
    lines = []
    for question in questions:
        for index, answer in enumerate(question.answers):
            line = Line()
            path = line.append([*question.prompt, *answer, *closing])
            start = len(question.prompt)
            line.answer(question.row * len(question.answers) + index, path[start - 1 : start + len(answer)])
            lines.append(line)
    return lines


def decoder_lines(questions: Sequence[PromptWithAnswers], start: int, shared: bool) -> list[Line]:
    """The decoder's side of an encoder-decoder: `start` and an answer, a line each, or one a question if `shared`.

    Its answers then stand side by side, each with its own start token, blind to each other. Distances between the
    tokens of one sequence stay what they are alone, which is all that relative position biases see.
    """
    lines = []
    for question in questions:
        for index, answer in enumerate(question.answers):
            if index == 0 or not shared:
                lines.append(Line(source=question.prompt))
            lines[-1].answer(question.row * len(question.answers) + index, lines[-1].append([start, *answer]))
    return lines


def batch_lines(lines: Sequence[Line], tokens: int) -> Iterator[list[Line]]:
    """Lines in batches of up to `tokens`, with padding; longest first, so that memory runs out at once or never."""

    def size(line: Line) -> int:
        return len(line.source) + len(line.ids)

    batch: list[Line] = []
    for line in sorted(lines, key=size, reverse=True):
        if batch and (len(batch) + 1) * size(batch[0]) > tokens:
            yield batch
            batch = []
        batch.append(line)
    if batch:
        yield batch


def pad_right(sequences: Sequence[TokenIds], filler: int) -> Tensor:
    """Sequences of numbers as one tensor [B, T], padded on the right."""
    size = max(map(len, sequences))
    return torch.tensor([[*sequence, *[filler] * (size - len(sequence))] for sequence in sequences])


def join_lines(lines: Sequence[Line]) -> Line:
    """Several lines as one, behind each other; their tokens stay blind to each other, as no parent is in another."""
    whole = Line()
    for line in lines:
        start = len(whole.ids)
        whole.ids += line.ids
        whole.depth += line.depth
        whole.parent += [node + start if node >= 0 else -1 for node in line.parent]
        whole.slots += line.slots
        whole.tails += [[node + start for node in tail] for tail in line.tails]
    return whole


def read_columns(line: Line, tail: TokenIds, position: Position, whole: bool = False) -> TokenIds:
    """Which columns of a sequence are read (several: their mean).

    `last`, `first`, `mean`: of the answer's tokens; `penultimate`: the token before the answer's last one. With
    `whole` (bidirectional models) `first` is the opening token and `mean` is over all tokens.
    """
    if whole and position in ("first", "mean"):
        return [0] if position == "first" else list(range(len(line.ids)))
    return {"last": tail[-1:], "first": tail[1:2], "penultimate": tail[-2:-1], "mean": tail[1:]}[position]
