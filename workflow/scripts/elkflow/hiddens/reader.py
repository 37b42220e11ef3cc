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
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.15}


@dataclass(frozen=True)
class SlotStates:
    """Hidden states [L, S, D] and answer log-probabilities [S] (None without an output layer) of S slots."""

    slots: list[int]
    states: Tensor
    logprobs: Tensor | None


class Reader:
    """Lays questions out in lines and reads hidden states from them.

    Args:
        shared: compute common beginnings once; off: a line of its own for every prompt and answer.
        windowed: with `shared`, in a decoder: attention looks only where there is something to see, in lines of any
            length; off: at whole lines, under a mask.
        closing: tokens that end an encoder's input.
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
        """The questions laid out for this model, several in a line of at most `tokens` (and 512 under a mask)."""
        if self.kind == "encoder-decoder":
            return decoder_lines(questions, self._decoder_start(), self.shared)
        if self.windowed:
            return tree_lines(questions, math.inf, tokens)
        if self.shared:
            return tree_lines(questions, self.config.hidden_size, min(tokens, 512))
        return unshared_lines(questions, self.closing if self.kind == "encoder" else ())

    def _decoder_start(self) -> int:
        """The token that opens a decoder's text; padding where the checkpoint names none, as T5 does."""
        for config in (self.model.generation_config, self.model.config):
            if getattr(config, "decoder_start_token_id", None) is not None:
                return config.decoder_start_token_id
        return self.filler

    @torch.inference_mode()
    def read(self, lines: Sequence[Line]) -> SlotStates:
        """One forward pass over one batch of lines."""
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
        """Run the encoder once for each question of the batch, however many lines it has."""
        sources = {tuple(line.source): None for line in lines}
        number = {source: index for index, source in enumerate(sources)}
        ids = pad_right([list(source) for source in sources], self.filler).to(self.model.device)
        mask = pad_right([[1] * len(source) for source in sources], 0).to(self.model.device)
        encoded = self.model.get_encoder()(input_ids=ids, attention_mask=mask)
        which = torch.tensor([number[tuple(line.source)] for line in lines], device=ids.device)
        encoded.last_hidden_state = encoded.last_hidden_state[which]
        return {"encoder_outputs": encoded, "attention_mask": mask[which]}

    def _gather(self, hidden: Sequence[Tensor], lines: Sequence[Line]) -> Tensor:
        """Pick the positions that are read out of [B, T, D] of every layer: [L, S, D]; means are taken in fp32."""
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
    """`reader` if its shared layout gives the states of plain forwards on a few questions, else a simpler one.

    Not every architecture takes an attention of ours, or honours a custom mask and positions (sliding windows, ALiBi,
    state space models): rather than keep a list of them, ask the model.
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
    """Whether both read the same from the longest question and a few that open alike."""
    longest = max(questions, key=lambda question: len(question.prompt))
    near = sorted(questions, key=lambda question: question.prompt)
    sample = [longest, *(question for question in near[:3] if question is not longest)]
    try:
        mine, theirs = (one.read(one.lines(sample)) for one in (reader, plain))
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        logger.info("simpler batches: this architecture takes no custom attention (%s)", error)
        return False
    order = torch.tensor(mine.slots).argsort(), torch.tensor(theirs.slots).argsort()
    left, right = mine.states[:, order[0]].float(), theirs.states[:, order[1]].float()
    difference = ((left - right).norm(dim=-1) / right.norm(dim=-1).clamp_min(1e-6)).max().item()
    if difference > TOLERANCE[mine.states.dtype]:
        logger.info("simpler batches: shared ones differ by %.2g in this architecture", difference)
    return difference <= TOLERANCE[mine.states.dtype]
