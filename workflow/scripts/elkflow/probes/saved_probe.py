"""A fitted probe as a folder: its parameters in `probe.safetensors`, their description in `probe.json`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from elkflow.common.errors import UserError
from elkflow.common.files import atomic, read_json, write_json

FORMAT_VERSION = 1
REQUIRED_KEYS = (
    "method",
    "layer",
    "layers",
    "layer_convention",
    "position",
    "model",
    "wordings",
    "answers",
    "ensembling",
)


@dataclass(frozen=True)
class Probe:
    """A direction on one layer, with the normalisation that it was fitted with.

    log-odds = weight · ((h₁ − mean₁)/scale₁ − (h₀ − mean₀)/scale₀) + bias, where h₁ and h₀ are the hidden states of the
    pair's positive and negative member.
    """

    mean: Tensor
    """[V, 2, D]"""
    scale: Tensor
    """[V, 2, D]"""
    weight: Tensor
    """[D]"""
    bias: Tensor
    """[]"""
    facts: Mapping[str, Any]
    """The content of probe.json."""

    @property
    def layer(self) -> int:
        """Index of the layer among the hidden states."""
        return int(self.facts["layer"])

    def log_odds(self, states: Tensor) -> Tensor:
        """Log-odds [N] that the positive answer is right, averaged over V wordings, from states [V, N, 2, D].

        V is all wordings of the probe with full ensembling, else 1 (see `wordings`).
        """
        count = states.shape[0]
        normal = (states.float() - self.mean[:count, None]) / self.scale[:count, None]
        # Unlike a matrix product, a sum per row is bitwise the same whichever rows are scored together.
        odds = ((normal[:, :, 1] - normal[:, :, 0]) * self.weight).sum(-1) + self.bias  # [V, N]
        return odds.mean(0)

    @property
    def wordings(self) -> list[str]:
        """Wordings whose states `log_odds` reads."""
        return list(self.facts["wordings"]) if self.facts["ensembling"] == "full" else [self.facts["wordings"][0]]


def save_probe(probe: Probe, folder: Path) -> None:
    """Write both files of a probe."""
    tensors = {
        name: getattr(probe, name).detach().cpu().float().contiguous() for name in ("mean", "scale", "weight", "bias")
    }
    with atomic(folder / "probe.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": str(FORMAT_VERSION)})
    write_json(folder / "probe.json", {"format": FORMAT_VERSION, **probe.facts})


def load_probe(folder: Path | str) -> Probe:
    """Read a probe from its folder.

    Raises:
        UserError: a file is missing, damaged or of another format version, or the two do not match.
    """
    folder = Path(folder)
    facts = read_json(folder / "probe.json")
    if not isinstance(facts, dict) or facts.get("format") != FORMAT_VERSION:
        found = facts.get("format") if isinstance(facts, dict) else None
        raise UserError(f"{folder / 'probe.json'}: format {found!r}, but this version reads format {FORMAT_VERSION}")
    if missing := [key for key in REQUIRED_KEYS if key not in facts]:
        raise UserError(f"{folder / 'probe.json'}: {missing[0]!r} is missing")
    path = folder / "probe.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in ("mean", "scale", "weight", "bias")}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable probe ({error})") from None
    width = tensors["weight"].shape[-1] if tensors["weight"].dim() == 1 else 0
    shape = (len(facts["wordings"]), 2, width)
    if tensors["mean"].shape != shape or tensors["scale"].shape != shape or tensors["bias"].dim() != 0:
        raise UserError(f"{path}: its shapes do not match each other or the wordings of probe.json")
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise UserError(f"{path}: has values that are not finite")
    return Probe(**tensors, facts=facts)


def check_states(probe: Probe, folder: Path | str, metadata: Mapping[str, str], path: Path | str) -> None:
    """Check that hidden states are of the kind that a probe was fitted on.

    Args:
        folder: the probe's folder, for messages.
        metadata: metadata of the file of states.
        path: that file.

    Raises:
        UserError: they are of another model, at another token position, or with layers numbered differently.
    """
    facts = probe.facts
    if facts["model"]["hash"] != metadata.get("model"):
        raise UserError(f"{path}: states of another model than {folder} was fitted on ({facts['model']['name']})")
    for key, name in (("layer_convention", "layers"), ("position", "position")):
        if facts[key] != metadata.get(name):
            raise UserError(f"{path}: {key.replace('_', ' ')} is {metadata.get(name)!r}, the probe's {facts[key]!r}")


def sigmoid_rewards(log_odds: Tensor) -> Tensor:
    """Rewards [..., 2] of the negative and the positive answer: the probability that each is right."""
    return torch.stack([torch.sigmoid(-log_odds), torch.sigmoid(log_odds)], -1)
