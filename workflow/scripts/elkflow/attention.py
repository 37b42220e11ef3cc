"""Attention over tries of many questions that computes little more than what is seen (see `packing.windows`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import AttentionInterface, PreTrainedModel

WINDOWED = "elkflow_windowed"
"""The name that transformers knows `attend` by."""


@contextmanager
def looks_through(model: PreTrainedModel, columns: Tensor, seen: Tensor) -> Iterator[dict[str, Any]]:
    """Within, a model given the keywords that this yields attends in windows (see `packing.windows`)."""
    mask = torch.zeros(seen.shape).masked_fill_(~seen, torch.finfo(torch.float32).min)
    before = model.config._attn_implementation
    model.set_attn_implementation(WINDOWED)
    try:
        yield {"windows": (columns.to(model.device), mask.to(model.device))}
    finally:
        model.set_attn_implementation(before)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    windows: tuple[Tensor, Tensor],
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of one line [1, H, T, D] in N windows: runs of C tokens, each over K keys of G heads.

    Heads that share a key stand behind each other as further queries, so that no key is copied for them. For so small
    products fused attention takes half as long again as this on a CPU; as there, scores and softmax are in float32.
    """
    chosen, mask = (each.to(query.device) for each in windows)
    heads, length, width = query.shape[1:]
    (count, size), groups = mask.shape[:2], key.shape[1]
    filled = pad(query[0], (0, 0, 0, count * size - length))
    rows = filled.view(groups, heads // groups, count, size, width).permute(2, 0, 1, 3, 4).flatten(2, 3)
    keys, values = (each[0][:, chosen].transpose(0, 1) for each in (key, value))  # [N, G, K, D]
    scores = torch.matmul(rows.float() * scaling, keys.float().mT)
    scores += mask.repeat(1, heads // groups, 1)[:, None]
    found = torch.matmul(scores.softmax(-1).to(values.dtype), values)
    found = found.unflatten(2, (heads // groups, size)).permute(0, 3, 1, 2, 4)  # [N, C, G, H/G, D]
    return found.reshape(1, count * size, heads, width)[:, :length], None


AttentionInterface.register(WINDOWED, attend)
