"""Hidden states of contrast pairs, all layers, streamed into one safetensors file.

Layers are counted as transformers counts `hidden_states`: 0 is the embeddings, i the output of block i, and the last
one is taken after the final norm.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from elkflow.attention import additive, windowed
from elkflow.cli import progress
from elkflow.errors import UserError
from elkflow.files import atomic, read_json
from elkflow.models import Kind, encode_answer, encode_prompt, special_tokens
from elkflow.packing import (
    Line,
    Position,
    Question,
    ancestor_mask,
    batches,
    columns,
    decoder_lines,
    joined,
    pad,
    plain_lines,
    tree_lines,
    windows,
)
from elkflow.states import Shape, StatesFile

logger = logging.getLogger("elkflow")

CONVENTION = "hidden_states: 0 embeddings, i output of block i, last after the final norm"
BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
AGREEMENT = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.15}


def tokenise(
    tokenizer: PreTrainedTokenizerBase, kind: Kind, prompts: Sequence[str], answers: Sequence[Sequence[str]]
) -> list[Question]:
    """Questions as token ids, in the order of the file.

    An encoder-decoder's prompt is closed (EOS) as its encoder expects.

    Raises:
        UserError: a prompt or an answer is empty, or questions differ in their number of answers; names the row.
    """
    closing = special_tokens(tokenizer)[1] if kind == "encoder-decoder" else []
    known = {text: encode_answer(tokenizer, text) for texts in answers for text in texts}
    questions = []
    for row, (prompt, texts) in enumerate(zip(prompts, answers, strict=True)):
        question = Question(row, encode_prompt(tokenizer, prompt) + closing, [known[text] for text in texts])
        if not question.prompt or not texts or not all(question.answers):
            raise UserError(f"row {row}: the prompt or an answer has no tokens")
        if len(texts) != len(answers[0]):
            raise UserError(f"row {row}: has {len(texts)} answers, but row 0 has {len(answers[0])}")
        questions.append(question)
    if not questions:
        raise UserError("there are no prompts to read states of")
    return questions


def check_lengths(questions: Sequence[Question], folder: Path, names: Sequence[str], closing: int = 0) -> None:
    """Refuse prompts that do not fit the model, before it is loaded.

    Raises:
        UserError: names the example and both lengths.
    """
    config = read_json(folder / "config.json")
    limit = config.get("max_position_embeddings")
    if limit is None and not config.get("is_encoder_decoder"):  # T5 has an n_positions that limits nothing
        limit = config.get("n_positions")
    if not isinstance(limit, int) or limit <= 0:
        return
    if config.get("model_type") in ("roberta", "xlm-roberta", "camembert"):  # their positions start at 2
        limit -= 2
    for question in questions:
        length = len(question.prompt) + max(map(len, question.answers)) + closing
        if length > limit:
            raise UserError(f"{names[question.row]}: {length} tokens, but the model reads at most {limit}")


@dataclass(frozen=True)
class Read:
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
        kind: Kind,
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

    def lines(self, questions: Sequence[Question], tokens: int = 2048) -> list[Line]:
        """The questions laid out for this model, several in a line of at most `tokens` (and 512 under a mask)."""
        if self.kind == "encoder-decoder":
            return decoder_lines(questions, self._decoder_start(), self.shared)
        if self.windowed:
            return tree_lines(questions, math.inf, tokens)
        if self.shared:
            return tree_lines(questions, self.config.hidden_size, min(tokens, 512))
        return plain_lines(questions, self.closing if self.kind == "encoder" else ())

    def _decoder_start(self) -> int:
        """The token that opens a decoder's text; padding where the checkpoint names none, as T5 does."""
        for config in (self.model.generation_config, self.model.config):
            if getattr(config, "decoder_start_token_id", None) is not None:
                return config.decoder_start_token_id
        return self.filler

    @torch.inference_mode()
    def read(self, lines: Sequence[Line]) -> Read:
        """One forward pass over one batch of lines."""
        device = self.model.device
        if self.windowed:
            lines = [joined(lines)]
        ids = pad([line.ids for line in lines], self.filler).to(device)
        if self.windowed:
            mask = None
        elif self.shared:
            mask = ancestor_mask(lines, self.model.dtype).to(device)
        else:
            mask = pad([[1] * len(line.ids) for line in lines], 0).to(device)
        inputs: dict[str, Any] = {"output_hidden_states": True, "use_cache": False}
        if self.kind == "encoder-decoder":
            inputs |= self._encoded(lines) | {"decoder_input_ids": ids, "decoder_attention_mask": mask}
        else:
            inputs |= {"input_ids": ids, "attention_mask": mask}
            if self.shared:
                inputs["position_ids"] = pad([line.depth for line in lines], 0).to(device)
            if self.kind == "encoder":
                del inputs["use_cache"]
        slots = [slot for line in lines for slot in line.slots]
        if self.kind == "encoder":
            return Read(slots, self._gather(self.model(**inputs).hidden_states, lines), None)
        scored = [
            (index, before, line.ids[column], position)
            for position, (index, line, tail) in enumerate(_sequences(lines))
            for before, column in pairwise(tail)
        ]
        where, order = torch.unique(torch.tensor([item[:2] for item in scored]), dim=0, return_inverse=True)
        with ExitStack() as within:
            within.enter_context(outputs_only_at(self.model, where))
            if self.windowed:
                inputs["windows"] = additive(*windows(lines[0]), device)
                within.enter_context(windowed(self.model))
            outputs = self.model(**inputs)
        logprobs = outputs.logits[0].float().log_softmax(-1).cpu()
        tokens, owner = torch.tensor([item[2] for item in scored]), torch.tensor([item[3] for item in scored])
        sums = torch.zeros(len(slots)).index_add_(0, owner, logprobs[order, tokens])
        hidden = outputs.decoder_hidden_states if self.kind == "encoder-decoder" else outputs.hidden_states
        return Read(slots, self._gather(hidden, lines), sums)

    def _encoded(self, lines: Sequence[Line]) -> dict[str, Any]:
        """Run the encoder once for each question of the batch, however many lines it has."""
        sources = {tuple(line.source): None for line in lines}
        number = {source: index for index, source in enumerate(sources)}
        ids = pad([list(source) for source in sources], self.filler).to(self.model.device)
        mask = pad([[1] * len(source) for source in sources], 0).to(self.model.device)
        encoded = self.model.get_encoder()(input_ids=ids, attention_mask=mask)
        which = torch.tensor([number[tuple(line.source)] for line in lines], device=ids.device)
        encoded.last_hidden_state = encoded.last_hidden_state[which]
        return {"encoder_outputs": encoded, "attention_mask": mask[which]}

    def _gather(self, hidden: Sequence[Tensor], lines: Sequence[Line]) -> Tensor:
        """Pick the positions that are read out of [B, T, D] of every layer: [L, S, D]; means are taken in fp32."""
        chosen = [
            (index, columns(line, tail, self.position, whole=self.kind == "encoder"))
            for index, line, tail in _sequences(lines)
        ]
        row = torch.tensor([index for index, _ in chosen])
        if all(len(places) == 1 for _, places in chosen):
            column = torch.tensor([places[0] for _, places in chosen])
            return torch.stack([layer[row.to(layer.device), column.to(layer.device)].cpu() for layer in hidden])
        column = pad([places for _, places in chosen], 0)
        weight = pad([[1] * len(places) for _, places in chosen], 0).float()
        weight = (weight / weight.sum(1, keepdim=True))[..., None]
        layers = [layer[row[:, None].to(layer.device), column.to(layer.device)].cpu() for layer in hidden]
        return torch.stack([(layer.float() * weight).sum(1).to(layer.dtype) for layer in layers])


def _sequences(lines: Sequence[Line]) -> Iterator[tuple[int, Line, list[int]]]:
    return ((index, line, tail) for index, line in enumerate(lines) for tail in line.tails)


@contextmanager
def outputs_only_at(model: PreTrainedModel, where: Tensor) -> Iterator[None]:
    """Within, the output layer computes logits [1, K, V] at K places `where` [K, 2] of (line, column), nowhere else.

    With a large vocabulary the output layer is a good part of a small model. Picking its input, not its output,
    keeps whatever the model does to its logits afterwards (scaling, capping).
    """

    def pick(module: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        index = where.to(args[0].device)
        return (args[0][index[:, 0], index[:, 1]][None], *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


def choose_layout(reader: Reader, questions: Sequence[Question]) -> Reader:
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
        return reader if _agree(reader, plain, questions) else choose_layout(masked, questions)
    return reader if _agree(reader, plain, questions) else plain


def _agree(reader: Reader, plain: Reader, questions: Sequence[Question]) -> bool:
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
    if difference > AGREEMENT[mine.states.dtype]:
        logger.info("simpler batches: shared ones differ by %.2g in this architecture", difference)
    return difference <= AGREEMENT[mine.states.dtype]


def extract(
    model: PreTrainedModel,
    kind: Kind,
    questions: Sequence[Question],
    path: Path,
    *,
    names: Sequence[str],
    position: Position = "last",
    closing: Sequence[int] = (),
    batch_tokens: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write the hidden states of every question and answer to `path`; return facts about how it went.

    The file holds `layers.0` … `layers.L`, each [N, A, D] in the questions' order and the states' own dtype, and
    `answer_logprobs` [N, A] float32 unless the model is an encoder. Processes of one `accelerate launch` share the
    batches out and write into one file, so they must see the same file system.

    Args:
        names: what to call each row in messages.
        batch_tokens: tokens in one forward pass, with padding.

    Raises:
        UserError: a state is not finite; names the row and the layer.
    """
    processes = PartialState(cpu=not torch.cuda.is_available())
    tokens = batch_tokens or BATCH_TOKENS.get(model.device.type, 8192)
    reader = Reader(model, kind, position=position, closing=closing)
    chosen = choose_layout(reader, questions)
    reader.shared, reader.windowed = shared_by_all(processes, (chosen.shared, chosen.windowed))
    work = list(batches(reader.lines(questions, tokens), tokens))
    like = reader.read(reader.lines(questions[:1]))  # tells dtype and sizes
    answers = len(questions[0].answers)
    states = (like.states.dtype, (len(questions), answers, like.states.shape[-1]))
    shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        f"layers.{layer}": states for layer in range(len(like.states))
    }
    if like.logprobs is not None:
        shapes["answer_logprobs"] = (torch.float32, (len(questions), answers))
    header = {"format": "1", "layers": CONVENTION, "position": position, "kind": kind, **(metadata or {})}
    mine = work[processes.process_index :: processes.num_processes]
    with common_file(processes, path, shapes, header) as file:
        for lines in progress(mine, "hidden states") if processes.is_main_process else mine:
            read = reader.read(lines)
            check_finite(read, names, answers)
            write(file, read)
    computed = sum(len(line.ids) + len(line.source) for lines in work for line in lines)
    alone = sum(len(question.prompt) + len(answer) for question in questions for answer in question.answers)
    return {
        "layout": "shared" if reader.shared else "plain",
        "tokens_computed": computed,
        "tokens_one_by_one": alone,
        "dtype": str(like.states.dtype).removeprefix("torch."),
        "device": model.device.type,
    }


def shared_by_all(processes: PartialState, value: Any) -> Any:
    """The main process's value, in every process."""
    if processes.num_processes == 1:
        return value
    return broadcast_object_list([value])[0]


@contextmanager
def common_file(
    processes: PartialState,
    path: Path,
    shapes: Mapping[str, Shape],
    metadata: Mapping[str, str],
) -> Iterator[StatesFile]:
    """One file that all processes fill: the main one makes it and, when all are done, puts it in its place."""
    if not processes.is_main_process:
        with StatesFile(Path(shared_by_all(processes, None)), shapes, metadata, create=False) as file:
            yield file
        processes.wait_for_everyone()
        return
    with atomic(path) as temporary, StatesFile(temporary, shapes, metadata) as file:
        shared_by_all(processes, str(temporary))
        yield file
        processes.wait_for_everyone()


def write(file: StatesFile, read: Read) -> None:
    """Put each sequence's states in its slot."""
    order = torch.tensor(read.slots).argsort()
    slots, states = [read.slots[index] for index in order], read.states[:, order]
    start = 0
    for end in range(1, len(slots) + 1):  # runs of neighbouring slots go in one piece
        if end < len(slots) and slots[end] == slots[end - 1] + 1:
            continue
        for layer in range(len(states)):
            file.write(f"layers.{layer}", slots[start], states[layer, start:end])
        if read.logprobs is not None:
            file.write("answer_logprobs", slots[start], read.logprobs[order[start:end]])
        start = end


def check_finite(read: Read, names: Sequence[str], answers: int) -> None:
    """Raise a UserError that names the first row and layer with NaN or infinity."""
    for what, values in (("hidden states of layer", read.states), ("log-probabilities", read.logprobs)):
        if values is None or bool(torch.isfinite(values).all()):
            continue
        place = (~torch.isfinite(values)).nonzero()[0].tolist()
        layer, slot = (f" {place[0]}", place[1]) if values.dim() > 1 else ("", place[0])
        raise UserError(
            f"{names[read.slots[slot] // answers]}: {what}{layer} are not finite numbers; try another dtype (float32)"
        )
