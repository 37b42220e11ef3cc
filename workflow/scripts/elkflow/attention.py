"""Attention over tries of many sequences that computes little more than what is seen (see `packing.windows`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, pad
from transformers import AttentionInterface, PreTrainedModel

WINDOWED = "elkflow_windowed"
"""The name that transformers knows `attend` by."""


@contextmanager
def windowed(model: PreTrainedModel) -> Iterator[None]:
    """Within, the model attends in the windows that it is given as a keyword (see `additive`)."""
    before = model.config._attn_implementation
    model.set_attn_implementation(WINDOWED)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def additive(columns: Tensor, seen: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Windows as `attend` takes them: keys [N, K], and what is added to their scores [N, C, K]."""
    columns, seen = columns.to(device), seen.to(device)
    return columns, torch.zeros(seen.shape, device=device).masked_fill_(~seen, torch.finfo(torch.float32).min)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    windows: tuple[Tensor, Tensor],
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of one line [1, H, T, D] in N windows: runs of C tokens, each over K keys of G heads.

    Heads that share a key stand behind each other as further queries, so that no key is copied for them. For so small
    products fused attention takes half as long again as this on a CPU. Scores and softmax are in float32 as there;
    under autocast the scores come from half precision, as in transformers' "eager" attention.

    Raises:
        ValueError: the architecture does something to its scores that is not done here.
    """
    if softcap is not None or s_aux is not None:
        raise ValueError("attention with capped scores or sinks")
    chosen, mask = (each.to(query.device) for each in windows)
    heads, length, width = query.shape[1:]
    (count, size), groups = mask.shape[:2], key.shape[1]
    filled = pad(query[0].transpose(0, 1).flatten(1), (0, 0, 0, count * size - length))
    rows = filled.view(count, size, groups, heads // groups, width).permute(0, 2, 3, 1, 4).flatten(2, 3)
    keys, values = (_picked(each[0], chosen) for each in (key, value))
    exact = keys.dtype if torch.is_autocast_enabled(query.device.type) else torch.float32
    with torch.autocast(query.device.type, enabled=False):
        scores = torch.matmul(rows.to(exact) * scaling, keys.to(exact).mT).float()
        scores = scores.unflatten(2, (heads // groups, size)) + mask[:, None, None]
        weights = torch.nn.functional.dropout(scores.softmax(-1).flatten(2, 3), dropout).to(values.dtype)
        found = torch.matmul(weights, values).unflatten(2, (heads // groups, size))
    found = found.permute(0, 3, 1, 2, 4)  # [N, C, G, H/G, D]
    return found.reshape(1, count * size, heads, width)[:, :length], None


def _picked(states: Tensor, chosen: Tensor) -> Tensor:
    """Keys or values [G, T, D] at columns [N, K] -> [N, G, K, D]; an embedding's gradient is the fast one on a CPU."""
    groups, _, width = states.shape
    rows = embedding(chosen, states.transpose(0, 1).flatten(1))
    return rows.view(*chosen.shape, groups, width).transpose(1, 2)


AttentionInterface.register(WINDOWED, attend)
