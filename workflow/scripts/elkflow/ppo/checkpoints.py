"""Checkpoints from which training resumes bit for bit.

A checkpoint is a folder `step-000012`: `tensors.safetensors` (trained weights, optimiser moments, states of the random
number generators), `state.json` (everything else) and `hashes.json`, by which a damaged one is
recognised. Folders appear whole or not at all. Nothing is pickled.
"""

import logging
import random
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from elkflow.common.files import atomic, read_json, sha256, write_json

FILES = ("tensors.safetensors", "state.json")
logger = logging.getLogger(__name__)


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Write checkpoint `step-…` into `folder`, replacing one of the same step."""
    target = folder_of(folder, step)
    with atomic(target) as temporary:
        temporary.mkdir()
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary / FILES[0])
        write_json(temporary / FILES[1], {"step": step, **state})
        write_json(temporary / "hashes.json", {name: sha256(temporary / name) for name in FILES})
    return target


def load(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of an undamaged checkpoint.

    Raises:
        ValueError: it is damaged.
    """
    try:
        hashes = read_json(checkpoint / "hashes.json")
        whole = all(sha256(checkpoint / name) == hashes[name] for name in FILES)
    except Exception as error:  # whatever a damaged disk makes of it
        raise ValueError(f"{checkpoint}: damaged ({error})") from None
    if not whole:
        raise ValueError(f"{checkpoint}: damaged (its hashes do not match)")
    return load_file(checkpoint / FILES[0]), read_json(checkpoint / FILES[1])


def newest(folder: Path, fingerprint: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest undamaged checkpoint of the same run; damaged ones are skipped with a warning.

    Args:
        fingerprint: of everything that determines the run. Checkpoints with another one are not used.
    """
    for checkpoint in sorted(folder.glob("step-*"), reverse=True):
        try:
            tensors, state = load(checkpoint)
        except ValueError as error:
            logger.warning("%s; trying the previous one", error)
            continue
        if state["fingerprint"] == fingerprint:
            return tensors, state
        logger.info("%s belongs to other settings, data or code; starting from the beginning", checkpoint)
        return None
    return None


def folder_of(folder: Path, step: int) -> Path:
    """The checkpoint of a step."""
    return folder / f"step-{step:06d}"


def prune(folder: Path, keep: int, needed: Collection[int]) -> None:
    """Remove all checkpoints but the last `keep` and those of the steps in `needed`."""
    for checkpoint in sorted(folder.glob("step-*"))[:-keep]:
        if checkpoint not in [folder_of(folder, step) for step in needed]:
            shutil.rmtree(checkpoint)


def clear(folder: Path) -> None:
    """Remove what earlier runs left in the folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors."""
    return {
        f"optimizer.{index}.{name}": torch.as_tensor(value)
        for index, entries in optimizer.state_dict()["state"].items()
        for name, value in entries.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Undo `optimizer_tensors`. The optimiser must hold the same parameters in the same order."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def random_states() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """States of the random number generators of Python, NumPy and torch, as (tensors, JSON)."""
    version, numbers, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    tensors = {"random.torch": torch.get_rng_state(), "random.numpy": torch.from_numpy(np.asarray(keys, np.int64))}
    tensors |= {f"random.cuda.{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())} if _cuda() else {}
    return tensors, {"python": [version, list(numbers), gauss], "numpy": [int(position), int(has_gauss), cached]}


def restore_random_states(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Undo `random_states`."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    keys = tensors["random.numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, *state["numpy"]))
    torch.set_rng_state(tensors["random.torch"])
    states = [tensors[key] for key in sorted(tensors) if key.startswith("random.cuda.")]
    if states and _cuda() and len(states) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states)


def _cuda() -> bool:
    return torch.cuda.is_available()
