"""Token sequences laid out for a forward pass of the policy: a padded line for each, or one prefix tree of them all.

Prompts rendered from one template begin alike, and in a causal model a token's states depend on its predecessors only.
In a prefix tree what sequences share is computed once, forward and backward, and nothing is padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from elkflow.batching import prefix_tree, tree_attention
from elkflow.batching.tree_attention import additive_windows

LONGEST = 256
"""Tokens of the longest sequence in a prefix tree. Its attention is written out, which for longer sequences would take
more memory than everything else in a block; they keep the fused one."""


@dataclass(frozen=True)
class Layout:
    """B sequences of up to S tokens, in the lines that go through the model."""

    ids: Tensor
    """[B, S] padded on the right, or a prefix tree [1, N]."""
    columns: Tensor
    """Columns of each sequence's tokens in its line [B, S]."""
    lengths: Tensor
    """[B]."""
    inputs: dict[str, Any]
    """Further arguments of the model."""

    @property
    def packed(self) -> bool:
        return "windows" in self.inputs

    def places(self, positions: Tensor) -> Tensor:
        """Indices into the flattened lines of positions [B, T] in the sequences -> [B, T].

        Positions beyond the longest sequence, which are masked, are clamped to its end.
        """
        places = self.columns.gather(1, positions.clamp(max=self.columns.shape[1] - 1))
        if self.packed:
            return places
        return places + self.ids.shape[1] * torch.arange(len(places), device=places.device)[:, None]

    def following(self, tokens: Tensor) -> dict[str, Any]:
        """Inputs for the last of the tokens [B, t] sampled after the sequences, given a cache of all before it."""
        rows, count = tokens.shape
        places = self.lengths[:, None] + torch.arange(count, device=tokens.device)
        if not self.packed:
            old = torch.arange(self.ids.shape[1], device=tokens.device) < self.lengths[:, None]
            attend = torch.cat([old.long(), torch.ones_like(tokens)], dim=1)
            return {"input_ids": tokens[:, -1:], "attention_mask": attend, "position_ids": places[:, -1:]}
        new = self.ids.shape[1] + torch.arange(rows * count, device=tokens.device).view(count, rows).T
        old = torch.arange(self.columns.shape[1], device=tokens.device) < self.lengths[:, None]
        seen = torch.cat([old, torch.ones_like(new, dtype=torch.bool)], dim=1)[:, None]
        windows = additive_windows(torch.cat([self.columns, new], dim=1), seen, tokens.device)
        return {"input_ids": tokens[None, :, -1], "position_ids": places[None, :, -1], "windows": windows}


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> Layout:
    """A line for each sequence. Causal attention never looks to the right, so no mask is needed."""
    ids = prefix_tree.pad_right([list(row) for row in rows], 0).to(device)
    columns = torch.arange(ids.shape[1], device=device).expand(ids.shape)
    return Layout(ids, columns, _lengths(rows, device), {})


def packed(rows: Sequence[Sequence[int]], device: torch.device) -> Layout:
    """One prefix tree of all sequences."""
    line = prefix_tree.Line()
    paths: list[list[int]] = [[] for _ in rows]
    path: list[int] = []
    before: list[int] = []
    for index in sorted(range(len(rows)), key=lambda index: list(rows[index])):
        row = list(rows[index])
        path = path[: prefix_tree.common_prefix(before, row)]
        path += line.append(row[len(path) :], path[-1] if path else -1)
        paths[index], before = list(path), row
    columns, seen = tree_attention.attention_windows(line)
    inputs = {
        "position_ids": torch.tensor([line.depth], device=device),
        "windows": additive_windows(columns, seen, device),
    }
    ids = torch.tensor([line.ids], device=device)
    return Layout(ids, prefix_tree.pad_right(paths, 0).to(device), _lengths(rows, device), inputs)


def _lengths(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    return torch.tensor([len(row) for row in rows], device=device)
