"""Extraction of hidden states: those of every prompt and answer at all layers, streamed into one safetensors file.

Layers are numbered as in transformers' `hidden_states`: 0 is the embeddings, i the output of block i, and the last one
is taken after the final norm.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel

from elkflow.batching.prefix_tree import Position, PromptWithAnswers, batch_lines
from elkflow.common.cli import progress
from elkflow.common.errors import UserError
from elkflow.common.files import atomic
from elkflow.hiddens.reader import BATCH_TOKENS, Reader, SlotStates, choose_layout
from elkflow.hiddens.states_file import DtypeAndShape, StatesFile
from elkflow.models.load import ModelKind

LAYER_CONVENTION = "hidden_states: 0 embeddings, i output of block i, last after the final norm"


def extract_hiddens(
    model: PreTrainedModel,
    kind: ModelKind,
    questions: Sequence[PromptWithAnswers],
    path: Path,
    *,
    names: Sequence[str],
    position: Position = "last",
    closing: Sequence[int] = (),
    batch_tokens: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write the hidden states of every question and answer to `path`; return facts for the manifest.

    The file contains `layers.0` … `layers.L`, each [N, A, D] in the order of the questions and the states' own dtype,
    and `answer_logprobs` [N, A] in float32 unless the model is an encoder. Processes of one `accelerate launch` divide
    the batches among themselves and write into the same file, so they must share a file system.

    Args:
        names: what to call each row in messages.
        batch_tokens: tokens per forward pass, with padding.

    Raises:
        UserError: a state is not finite; names the row and the layer.
    """
    processes = PartialState(cpu=not torch.cuda.is_available())
    tokens = batch_tokens or BATCH_TOKENS.get(model.device.type, 8192)
    reader = Reader(model, kind, position=position, closing=closing)
    chosen = choose_layout(reader, questions)
    reader.shared, reader.windowed = broadcast(processes, (chosen.shared, chosen.windowed))
    work = list(batch_lines(reader.lines(questions, tokens), tokens))
    like = reader.read(reader.lines(questions[:1]))  # for dtype and sizes
    answers = len(questions[0].answers)
    states = (like.states.dtype, (len(questions), answers, like.states.shape[-1]))
    shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        f"layers.{layer}": states for layer in range(len(like.states))
    }
    if like.logprobs is not None:
        shapes["answer_logprobs"] = (torch.float32, (len(questions), answers))
    header = {"format": "1", "layers": LAYER_CONVENTION, "position": position, "kind": kind, **(metadata or {})}
    mine = work[processes.process_index :: processes.num_processes]
    with shared_states_file(processes, path, shapes, header) as file:
        for lines in progress(mine, "hidden states") if processes.is_main_process else mine:
            read = reader.read(lines)
            check_finite(read, names, answers)
            write_states(file, read)
    computed = sum(len(line.ids) + len(line.source) for lines in work for line in lines)
    alone = sum(len(question.prompt) + len(answer) for question in questions for answer in question.answers)
    return {
        "layout": "shared" if reader.shared else "plain",
        "tokens_computed": computed,
        "tokens_one_by_one": alone,
        "dtype": str(like.states.dtype).removeprefix("torch."),
        "device": model.device.type,
    }


def broadcast(processes: PartialState, value: Any) -> Any:
    """The main process's value, on every process."""
    if processes.num_processes == 1:
        return value
    return broadcast_object_list([value])[0]


@contextmanager
def shared_states_file(
    processes: PartialState,
    path: Path,
    shapes: Mapping[str, DtypeAndShape],
    metadata: Mapping[str, str],
) -> Iterator[StatesFile]:
    """A file that all processes write to: the main one creates it and, when all are done, moves it to `path`."""
    if not processes.is_main_process:
        with StatesFile(Path(broadcast(processes, None)), shapes, metadata, create=False) as file:
            yield file
        processes.wait_for_everyone()
        return
    with atomic(path) as temporary, StatesFile(temporary, shapes, metadata) as file:
        broadcast(processes, str(temporary))
        yield file
        processes.wait_for_everyone()


def write_states(file: StatesFile, read: SlotStates) -> None:
    """Write each sequence's states to its slot."""
    order = torch.tensor(read.slots).argsort()
    slots, states = [read.slots[index] for index in order], read.states[:, order]
    start = 0
    for end in range(1, len(slots) + 1):  # runs of consecutive slots are written at once
        if end < len(slots) and slots[end] == slots[end - 1] + 1:
            continue
        for layer in range(len(states)):
            file.write(f"layers.{layer}", slots[start], states[layer, start:end])
        if read.logprobs is not None:
            file.write("answer_logprobs", slots[start], read.logprobs[order[start:end]])
        start = end


def check_finite(read: SlotStates, names: Sequence[str], answers: int) -> None:
    """Raise a UserError that names the first row and layer with a NaN or an infinity."""
    for what, values in (("hidden states of layer", read.states), ("log-probabilities", read.logprobs)):
        if values is None or bool(torch.isfinite(values).all()):
            continue
        place = (~torch.isfinite(values)).nonzero()[0].tolist()
        layer, slot = (f" {place[0]}", place[1]) if values.dim() > 1 else ("", place[0])
        raise UserError(
            f"{names[read.slots[slot] // answers]}: {what}{layer} are not finite numbers; try another dtype (float32)"
        )
