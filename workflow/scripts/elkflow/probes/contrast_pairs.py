"""Contrast pairs of one split: labels and groups in memory, hidden states read from disk a few layers at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from elkflow.common.errors import UserError
from elkflow.common.files import read_table

MEMORY_LIMIT = 256 * 2**20
"""Bytes of float32 states held in memory at a time."""


@dataclass(frozen=True)
class ContrastPairs:
    """N contrast pairs under V wordings; the positive member ends in answer 1, the negative one in answer 0."""

    files: list[Path]
    """Files of hidden states, one per wording."""
    ids: list[str]
    labels: NDArray[np.int64]
    """Index of the right answer [N]."""
    groups: NDArray
    """Rows [N] with equal values are not independent."""
    prompts: list[str]
    """Prompts of the first wording [N]."""
    answers: list[str] | None
    """The two answers, if all rows have the same."""
    questions: list[str]
    """Id of the dataset row of each pair [N]."""
    shown: NDArray[np.int64] | None
    """If pairs ask about an answer (is it truthful?): the index of that answer [N]."""
    datasets: NDArray | None
    """In a mixture: the dataset of each pair [N]."""
    zero_shot: NDArray[np.float64] | None
    """The model's own log-odds of answer 1 over answer 0 [V, N]."""
    layers: int
    """Number of layers."""
    width: int
    """Size D of the hidden states."""
    metadata: list[dict[str, str]]
    """Metadata of each file of states."""

    @classmethod
    def read(cls, prompts: Sequence[Path], hiddens: Sequence[Path], *, labelled: bool = True) -> "ContrastPairs":
        """Read everything but the states.

        Args:
            prompts: rendered prompts, one file per wording, the main one first.
            hiddens: hidden states of the same wordings.
            labelled: require both labels.

        Raises:
            UserError: the files do not match, a row does not have two answers, or only one label occurs.
        """
        tables = [read_table(path, ["id", "group", "prompt", "answers", "label"]) for path in prompts]
        full = read_table(prompts[0])
        ids = tables[0]["id"].to_pylist()
        for path, table in zip(prompts[1:], tables[1:], strict=True):
            if table["id"].to_pylist() != ids:
                raise UserError(
                    f"{path}: its rows are not those of {prompts[0]}; a probe's wordings need the same splits"
                )
        answers = tables[0]["answers"].to_pylist()
        if (wrong := next((row for row, texts in enumerate(answers) if len(texts) != 2), None)) is not None:
            raise UserError(
                f"{prompts[0]}: row {wrong} ({ids[wrong]}) has {len(answers[wrong])} answers; a probe compares two "
                "(use a wording with `about` to ask whether each answer is right)"
            )
        labels = tables[0]["label"].to_numpy().astype(np.int64)
        if (wrong := next((row for row, label in enumerate(labels) if label not in (0, 1)), None)) is not None:
            raise UserError(f"{prompts[0]}: row {wrong} ({ids[wrong]}) has label {labels[wrong]}; 0 or 1 expected")
        if labelled and len(set(labels)) < 2:
            raise UserError(f"{prompts[0]}: every label is {labels[0]}; a probe needs both")
        columns = full.column_names
        headers = [_read_header(path, len(ids)) for path in hiddens]
        layers, width, _, _ = headers[0]
        for path, header in zip(hiddens, headers, strict=True):
            if header[:2] != (layers, width):
                raise UserError(f"{path}: has {header[0]} layers of width {header[1]}, not {layers} of {width}")
        zero_shot = [header[2] for header in headers]
        return cls(
            files=list(hiddens),
            ids=ids,
            labels=labels,
            groups=tables[0]["group"].to_numpy(),
            prompts=tables[0]["prompt"].to_pylist(),
            answers=answers[0] if all(texts == answers[0] for texts in answers) else None,
            questions=full["question_id"].to_pylist() if "question_id" in columns else ids,
            shown=full["answer_index"].to_numpy() if "answer_index" in columns else None,
            datasets=full["original_dataset"].to_numpy() if "original_dataset" in columns else None,
            zero_shot=None
            if any(odds is None for odds in zero_shot)
            else np.stack([o for o in zero_shot if o is not None]),
            layers=layers,
            width=width,
            metadata=[header[3] for header in headers],
        )

    def __len__(self) -> int:
        return len(self.ids)

    def states(
        self, layers: Sequence[int], device: torch.device | None = None, rows: tuple[int, int] | None = None
    ) -> Tensor:
        """Hidden states [L, V, N, 2, D] in float32 of the given layers, of all pairs or those from rows[0] to rows[1].

        Raises:
            UserError: a state is not finite; the message names file, layer and row.
        """
        first, last = rows or (0, len(self))
        parts = []
        for path in self.files:
            with safe_open(path, framework="pt") as file:
                read = [file.get_slice(f"layers.{layer}")[first:last] for layer in layers]
            parts.append(torch.stack(read).float())
        states = torch.stack(parts, 1)
        finite = torch.isfinite(states.sum(-1))
        if not finite.all():
            layer, wording, row, answer = (~finite).nonzero()[0].tolist()
            kind = "NaN" if states[layer, wording, row, answer].isnan().any() else "infinite"
            row += first
            raise UserError(
                f"{self.files[wording]}: layers.{layers[layer]}, row {row} ({self.ids[row]}), answer {answer} "
                f"has {kind} values; try another dtype for this model"
            )
        return states.to(device or states.device)

    def chunks(self, layers: Sequence[int], others: int = 0) -> list[list[int]]:
        """`layers` in chunks whose states fit in memory together with those of `others` more pairs."""
        one = 4 * (len(self) + others) * len(self.files) * 2 * self.width
        size = max(1, MEMORY_LIMIT // one)
        return [list(layers[start : start + size]) for start in range(0, len(layers), size)]


def _read_header(path: Path, rows: int) -> tuple[int, int, NDArray[np.float64] | None, dict[str, str]]:
    """Number of layers, width, zero-shot log-odds [N] and metadata of a file of hidden states."""
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith("layers.")]  # noqa: SIM118
            shape = file.get_slice("layers.0").get_shape() if "layers.0" in names else []
            metadata = file.metadata() or {}
            odds = None
            if "answer_logprobs" in file.keys():  # noqa: SIM118
                odds = file.get_tensor("answer_logprobs").double()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None
    if len(shape) != 3 or shape[1] != 2:
        raise UserError(f"{path}: has no states of contrast pairs (layers.0 has shape {shape})")
    if shape[0] != rows:
        raise UserError(f"{path}: has {shape[0]} rows, its prompts have {rows}")
    if odds is not None:
        odds = (odds[:, 1] - odds[:, 0]).numpy()
    return len(names), shape[2], odds, metadata


def split_groups(groups: NDArray, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the fit part and of the selection part, which gets whole groups until it has a `share` of the rows.

    Raises:
        UserError: there is only one group.
    """
    values, index = np.unique(groups, return_inverse=True)
    if len(values) < 2:
        raise UserError(f"all train rows are in one group ({values[0]!r}), so no selection part can be held out")
    order = np.random.default_rng(seed).permutation(len(values))
    before = np.cumsum(np.bincount(index)[order]) / len(groups)
    count = min(max(1, int(np.searchsorted(before, share - 1e-9)) + 1), len(values) - 1)
    chosen = np.isin(index, order[:count])
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def assign_folds(groups: NDArray, folds: int, seed: int) -> NDArray[np.int64]:
    """Fold of each row [N]; rows of a group share one, and there are at most as many folds as groups."""
    values, index = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(values))
    return (np.argsort(order) % min(folds, len(values)))[index]


@dataclass(frozen=True)
class Normalisation:
    """Mean and scale of the states of each answer under each wording [L, V, 2, D] (Burns et al. 2022).

    Computed on the rows that a probe is fitted on and stored with it, so that single rows can be scored.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, states: Tensor, kind: str) -> "Normalisation":
        """Statistics of `states` [L, V, N, 2, D]; `kind` as in the settings: full, mean or none."""
        mean, scale = torch.zeros_like(states[:, :, 0]), torch.ones_like(states[:, :, 0])
        if kind in ("full", "mean"):
            mean = states.mean(2)
        if kind == "full":
            deviation = states.std(2, correction=0)
            # constant features, such as embeddings of the same answer, must not be divided by rounding noise
            floor = 1e-4 * mean.abs() + 1e-6
            scale = torch.where(deviation > floor, deviation, 1)
        return cls(mean, scale)

    def __call__(self, states: Tensor) -> Tensor:
        """Normalised states [L, V, N, 2, D]."""
        return (states - self.mean[:, :, None]) / self.scale[:, :, None]
