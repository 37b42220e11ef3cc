"""Tree attention: masks over prefix trees, and attention in windows that skips most of what a mask would hide."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding
from torch.nn.functional import pad as pad_tensor
from transformers import AttentionInterface, PreTrainedModel

from elkflow.batching.prefix_tree import Line, pad_right

WINDOWED_ATTENTION = "elkflow_windowed"
"""Name of `attend_in_windows` in transformers."""


@contextmanager
def windowed_attention(model: PreTrainedModel) -> Iterator[None]:
    """Use `attend_in_windows` inside; the model is passed its windows as a keyword (see `additive_windows`)."""
    before = model.config._attn_implementation
    model.set_attn_implementation(WINDOWED_ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def additive_windows(columns: Tensor, seen: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Windows as `attend_in_windows` takes them: columns of keys [N, K] and an additive mask [N, C, K].

    Args:
        columns, seen: see `attention_windows`.
    """
    columns, seen = columns.to(device), seen.to(device)
    return columns, torch.zeros(seen.shape, device=device).masked_fill_(~seen, torch.finfo(torch.float32).min)


def attend_in_windows(
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
    """Attention of one line [1, H, T, D] in N windows: C queries each, over K keys of G heads.

    Heads that share a key (grouped-query attention) become further queries of it, so that no key is copied. On a CPU,
    fused attention takes half as long again for such small products. Scores and softmax are in float32, as in fused
    attention; under autocast the scores are computed from half precision, as in transformers' "eager" attention.

    Raises:
        ValueError: the architecture caps its scores or has attention sinks.
    """
    if softcap is not None or s_aux is not None:
        raise ValueError("attention with capped scores or sinks")
    chosen, mask = (each.to(query.device) for each in windows)
    heads, length, width = query.shape[1:]
    (count, size), groups = mask.shape[:2], key.shape[1]
    filled = pad_tensor(query[0].transpose(0, 1).flatten(1), (0, 0, 0, count * size - length))
    rows = filled.view(count, size, groups, heads // groups, width).permute(0, 2, 3, 1, 4).flatten(2, 3)
    keys, values = (_gather_columns(each[0], chosen) for each in (key, value))
    exact = keys.dtype if torch.is_autocast_enabled(query.device.type) else torch.float32
    with torch.autocast(query.device.type, enabled=False):
        scores = torch.matmul(rows.to(exact) * scaling, keys.to(exact).mT).float()
        scores = scores.unflatten(2, (heads // groups, size)) + mask[:, None, None]
        weights = torch.nn.functional.dropout(scores.softmax(-1).flatten(2, 3), dropout).to(values.dtype)
        found = torch.matmul(weights, values).unflatten(2, (heads // groups, size))
    found = found.permute(0, 3, 1, 2, 4)  # [N, C, G, H/G, D]
    return found.reshape(1, count * size, heads, width)[:, :length], None


def _gather_columns(states: Tensor, chosen: Tensor) -> Tensor:
    """Keys or values [G, T, D] at columns [N, K] -> [N, G, K, D]; `embedding`, for its fast gradient on a CPU."""
    groups, _, width = states.shape
    rows = embedding(chosen, states.transpose(0, 1).flatten(1))
    return rows.view(*chosen.shape, groups, width).transpose(1, 2)


AttentionInterface.register(WINDOWED_ATTENTION, attend_in_windows)


def ancestor_mask(lines: Sequence[Line], dtype: torch.dtype) -> Tensor:
    """Additive attention mask [B, 1, T, T]: 0 for a token itself and its ancestors, else the dtype's minimum.

    Padding attends to itself, so that no softmax is over an empty set.
    """
    size = max(len(line.ids) for line in lines)
    sees = np.zeros((len(lines), size, size), dtype=bool)
    sees[:, np.arange(size), np.arange(size)] = True
    for line, seen in zip(lines, sees, strict=True):
        for node, parent in enumerate(line.parent):
            if parent >= 0:
                seen[node] |= seen[parent]
    mask = torch.zeros(sees.shape, dtype=dtype)
    return mask.masked_fill_(~torch.from_numpy(sees), torch.finfo(dtype).min)[:, None]


def attention_windows(line: Line, size: int = 32) -> tuple[Tensor, Tensor]:
    """The keys that each window of `size` tokens of a trie needs, and which token attends to which of them.

    A trie lists the descendants of a token right after it. So a window attends to ancestors of its first token and to
    its own tokens: a few dozen, however long the line.

    Returns:
        Columns of keys [N, K] and whether each is attended to [N, size, K], for N windows. Padding, and tokens past
        the end, attend to the window's first column.
    """
    runs, columns = [], []
    for start in range(0, len(line.ids), size):
        path, node = [], line.parent[start]
        while node >= 0:
            path.append(node)
            node = line.parent[node]
        path.reverse()
        end = min(start + size, len(line.ids))
        sees = np.zeros((size, len(path) + size), dtype=bool)
        place = {node: index for index, node in enumerate(path)}
        for row, node in enumerate(range(start, end)):
            parent = line.parent[node]
            if parent >= start:
                sees[row] = sees[parent - start]
            elif parent >= 0:
                sees[row, : place[parent] + 1] = True
            sees[row, len(path) + row] = True
        sees[end - start :, 0] = True
        runs.append(sees)
        columns.append([*path, *range(start, end), *[start] * (start + size - end)])
    widest = max(map(len, columns))
    seen = np.zeros((len(runs), size, widest), dtype=bool)
    for index, sees in enumerate(runs):
        seen[index, :, : sees.shape[1]] = sees
    return pad_right(columns, 0), torch.from_numpy(seen)
