"""Reading hidden states of contrast pairs: the batch layout of each model family, and the forward pass over a batch."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from elkflow.batching.only_at import outputs_only_at
from elkflow.batching.prefix_tree import (
    Line,
    Position,
    PromptWithAnswers,
    decoder_lines,
    join_lines,
    pad_right,
    read_columns,
    tree_lines,
    unshared_lines,
)
from elkflow.batching.tree_attention import additive_windows, ancestor_mask, attention_windows, windowed_attention
from elkflow.models.load import ModelKind

logger = logging.getLogger("elkflow")

BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Tokens per forward pass, by device."""
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.15}
"""Largest relative difference between states of two layouts that count as equal."""


@dataclass(frozen=True)
class SlotStates:
    """Hidden states [L, S, D] and answer log-probabilities [S] (None without an output layer) of S slots."""

    slots: list[int]
    states: Tensor
    logprobs: Tensor | None


class Reader:
    """Lays out questions in lines and reads hidden states from them.

    Args:
        position: token at which states are read (see `read_columns`).
        closing: tokens that end an encoder's input.
        shared: compute shared prefixes once; otherwise every prompt and answer has its own line.
        windowed: with `shared`, in a decoder: windowed attention, in lines of any length; otherwise attention over
            whole lines, with a mask.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        kind: ModelKind,
        *,
        position: Position = "last",
        closing: Sequence[int] = (),
        shared: bool = True,
        windowed: bool = True,
    ) -> None:
        self.model, self.kind, self.position, self.closing = model, kind, position, closing
        self.shared = shared and kind != "encoder"
        self.windowed = windowed and self.shared and kind == "decoder"
        self.config = model.config.get_text_config(decoder=True)
        self.filler = self.config.pad_token_id or 0

    def lines(self, questions: Sequence[PromptWithAnswers], tokens: int = 2048) -> list[Line]:
        """The questions laid out for this model; shared lines have at most `tokens` tokens (512 with a mask)."""
        if self.kind == "encoder-decoder":
            return decoder_lines(questions, self._decoder_start(), self.shared)
        if self.windowed:
            return tree_lines(questions, math.inf, tokens)
        if self.shared:
            return tree_lines(questions, self.config.hidden_size, min(tokens, 512))
        return unshared_lines(questions, self.closing if self.kind == "encoder" else ())

    def _decoder_start(self) -> int:
        """The decoder's start token; the padding token if the config has none."""
        for config in (self.model.generation_config, self.model.config):
            if getattr(config, "decoder_start_token_id", None) is not None:
                return config.decoder_start_token_id
        return self.filler

    @torch.inference_mode()
    def read(self, lines: Sequence[Line]) -> SlotStates:
        """Read the states of one batch of lines in one forward pass."""
        device = self.model.device
        if self.windowed:
            lines = [join_lines(lines)]
        ids = pad_right([line.ids for line in lines], self.filler).to(device)
        if self.windowed:
            mask = None
        elif self.shared:
            mask = ancestor_mask(lines, self.model.dtype).to(device)
        else:
            mask = pad_right([[1] * len(line.ids) for line in lines], 0).to(device)
        inputs: dict[str, Any] = {"output_hidden_states": True, "use_cache": False}
        if self.kind == "encoder-decoder":
            inputs |= self._encoded(lines) | {"decoder_input_ids": ids, "decoder_attention_mask": mask}
        else:
            inputs |= {"input_ids": ids, "attention_mask": mask}
            if self.shared:
                inputs["position_ids"] = pad_right([line.depth for line in lines], 0).to(device)
            if self.kind == "encoder":
                del inputs["use_cache"]
        slots = [slot for line in lines for slot in line.slots]
        if self.kind == "encoder":
            return SlotStates(slots, self._gather(self.model(**inputs).hidden_states, lines), None)
        scored = [
            (index, before, line.ids[column], position)
            for position, (index, line, tail) in enumerate(_sequences(lines))
            for before, column in pairwise(tail)
        ]
        where, order = torch.unique(torch.tensor([item[:2] for item in scored]), dim=0, return_inverse=True)
        with ExitStack() as within:
            within.enter_context(outputs_only_at(self.model, where))
            if self.windowed:
                inputs["windows"] = additive_windows(*attention_windows(lines[0]), device)
                within.enter_context(windowed_attention(self.model))
            outputs = self.model(**inputs)
        logprobs = outputs.logits[0].float().log_softmax(-1).cpu()
        tokens, owner = torch.tensor([item[2] for item in scored]), torch.tensor([item[3] for item in scored])
        sums = torch.zeros(len(slots)).index_add_(0, owner, logprobs[order, tokens])
        hidden = outputs.decoder_hidden_states if self.kind == "encoder-decoder" else outputs.hidden_states
        return SlotStates(slots, self._gather(hidden, lines), sums)

    def _encoded(self, lines: Sequence[Line]) -> dict[str, Any]:
        """Run the encoder once per question of the batch, however many lines it has."""
        sources = {tuple(line.source): None for line in lines}
        number = {source: index for index, source in enumerate(sources)}
        ids = pad_right([list(source) for source in sources], self.filler).to(self.model.device)
        mask = pad_right([[1] * len(source) for source in sources], 0).to(self.model.device)
        encoded = self.model.get_encoder()(input_ids=ids, attention_mask=mask)
        which = torch.tensor([number[tuple(line.source)] for line in lines], device=ids.device)
        encoded.last_hidden_state = encoded.last_hidden_state[which]
        return {"encoder_outputs": encoded, "attention_mask": mask[which]}

    def _gather(self, hidden: Sequence[Tensor], lines: Sequence[Line]) -> Tensor:
        """States [L, S, D] at the columns to read, from [B, T, D] of every layer; means are taken in float32."""
        chosen = [
            (index, read_columns(line, tail, self.position, whole=self.kind == "encoder"))
            for index, line, tail in _sequences(lines)
        ]
        row = torch.tensor([index for index, _ in chosen])
        if all(len(places) == 1 for _, places in chosen):
            column = torch.tensor([places[0] for _, places in chosen])
            return torch.stack([layer[row.to(layer.device), column.to(layer.device)].cpu() for layer in hidden])
        column = pad_right([places for _, places in chosen], 0)
        weight = pad_right([[1] * len(places) for _, places in chosen], 0).float()
        weight = (weight / weight.sum(1, keepdim=True))[..., None]
        layers = [layer[row[:, None].to(layer.device), column.to(layer.device)].cpu() for layer in hidden]
        return torch.stack([(layer.float() * weight).sum(1).to(layer.dtype) for layer in layers])


def _sequences(lines: Sequence[Line]) -> Iterator[tuple[int, Line, list[int]]]:
    return ((index, line, tail) for index, line in enumerate(lines) for tail in line.tails)


def choose_layout(reader: Reader, questions: Sequence[PromptWithAnswers]) -> Reader:
    """`reader` if its layout gives the same states as single sequences on a few questions, else a simpler one.

    Some architectures accept no custom attention, or ignore custom masks and positions (sliding windows, ALiBi, state
    space models). This is tested on the model itself, as a list of architectures would go out of date.
    """
    if not reader.shared:
        return reader
    options: dict[str, Any] = {"position": reader.position, "closing": reader.closing}
    plain = Reader(reader.model, reader.kind, shared=False, **options)
    if reader.windowed:
        masked = Reader(reader.model, reader.kind, windowed=False, **options)
        return reader if _states_agree(reader, plain, questions) else choose_layout(masked, questions)
    return reader if _states_agree(reader, plain, questions) else plain


def _states_agree(reader: Reader, plain: Reader, questions: Sequence[PromptWithAnswers]) -> bool:
    """Whether both readers give the same states for the longest question and a few that share a prefix."""
    longest = max(questions, key=lambda question: len(question.prompt) + max(map(len, question.answers), default=0))
    near = sorted(questions, key=lambda question: question.prompt)
    sample = [longest, *(question for question in near[:3] if question is not longest)]
    try:
        mine, theirs = (one.read(one.lines(sample)) for one in (reader, plain))
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        logger.info("using simpler batches: this architecture accepts no custom attention (%s)", error)
        return False
    order = torch.tensor(mine.slots).argsort(), torch.tensor(theirs.slots).argsort()
    left, right = mine.states[:, order[0]].float(), theirs.states[:, order[1]].float()
    difference = ((left - right).norm(dim=-1) / right.norm(dim=-1).clamp_min(1e-6)).max().item()
    if difference > TOLERANCE[mine.states.dtype]:
        logger.info("using simpler batches: states of shared ones differ by %.2g in this architecture", difference)
    return difference <= TOLERANCE[mine.states.dtype]
