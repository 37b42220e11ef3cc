"""Many token sequences in few forward passes: prefix trees (tries) with tree attention, or one padded line each.

The sequences of one prompt (followed by each answer) differ only in their last token or two, and prompts from one
template, or about one sentence, share a prefix. In a causal model a token's hidden states depend only on the tokens
before it, so a shared prefix needs to be computed only once. `tree_lines` packs sequences into tries in which a token
attends to itself and its ancestors, with its depth as its position: every state equals that of a forward pass over the
single sequence, at a fraction of the tokens.
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
    """One example as token ids: its row in the file, its prompt, and its possible answers."""

    row: int
    prompt: TokenIds
    answers: list[TokenIds]


@dataclass
class Line:
    """One line of a batch: the `ids` of its tokens, their `depth` (position) and `parent` (-1: none; parents first).

    Sequence i has the slot `slots[i]` (row × answers + answer); its last prompt token and its answer tokens are in the
    columns `tails[i]`. `source` is the input of the encoder, in an encoder-decoder.
    """

    ids: TokenIds = field(default_factory=list)
    depth: TokenIds = field(default_factory=list)
    parent: TokenIds = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    tails: list[TokenIds] = field(default_factory=list)
    source: TokenIds = field(default_factory=list)

    def append(self, tokens: TokenIds, node: int = -1) -> TokenIds:
        """Append tokens as a chain below `node`; return their columns."""
        start = len(self.ids)
        first = self.depth[node] + 1 if node >= 0 else 0
        self.ids += tokens
        self.depth += range(first, first + len(tokens))
        self.parent += [node, *range(start, start + len(tokens) - 1)][: len(tokens)]
        return list(range(start, len(self.ids)))

    def answer(self, slot: int, tail: TokenIds) -> None:
        """Record the slot of a sequence, and the columns of its last prompt token and its answer."""
        self.slots.append(slot)
        self.tails.append(tail)


def tree_lines(questions: Sequence[PromptWithAnswers], width: float, longest: int) -> list[Line]:
    """Tries of neighbouring questions, sorted by token ids.

    A question joins the previous trie if that saves work: `shared` fewer tokens in the matrix products (about
    24 width² operations each) against attention over a longer line (8 width operations for each of new × old pairs of
    tokens, at about a third of the speed of a matrix product).

    Args:
        width: the model's hidden size; infinity if the cost of attention does not grow with the line (see
            `attention_windows`).
        longest: maximum number of tokens in a trie of several questions.
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
    """Length of the common prefix of two sequences."""
    count = 0
    for left, right in zip(first, second, strict=False):
        if left != right:
            break
        count += 1
    return count


def unshared_lines(questions: Sequence[PromptWithAnswers], closing: Sequence[int] = ()) -> list[Line]:
    """One line per prompt and answer, followed by `closing` tokens (EOS, SEP)."""
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
    """Decoder inputs of an encoder-decoder: `start` and an answer, one line per answer, or per question if `shared`.

    Answers that share a line each have their own start token and do not attend to each other. The distances between
    the tokens of a sequence are unchanged, and relative position biases depend on nothing else.
    """
    lines = []
    for question in questions:
        for index, answer in enumerate(question.answers):
            if index == 0 or not shared:
                lines.append(Line(source=question.prompt))
            lines[-1].answer(question.row * len(question.answers) + index, lines[-1].append([start, *answer]))
    return lines


def batch_lines(lines: Sequence[Line], tokens: int) -> Iterator[list[Line]]:
    """Batches of at most `tokens` tokens with padding, longest first: if memory runs out, then in the first batch."""

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
    """Sequences as one tensor [B, T], padded on the right."""
    size = max(map(len, sequences))
    return torch.tensor([[*sequence, *[filler] * (size - len(sequence))] for sequence in sequences])


def join_lines(lines: Sequence[Line]) -> Line:
    """Several lines concatenated; tokens do not attend to other lines, as no parent is in another line."""
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
    """Columns at which a sequence's hidden states are read; several are averaged.

    `last`, `first`, `mean`: of the answer's tokens; `penultimate`: the token before the answer's last. With `whole`
    (bidirectional models) `first` is the first token of the input and `mean` is over all tokens.
    """
    if whole and position in ("first", "mean"):
        return [0] if position == "first" else list(range(len(line.ids)))
    return {"last": tail[-1:], "first": tail[1:2], "penultimate": tail[-2:-1], "mean": tail[1:]}[position]
