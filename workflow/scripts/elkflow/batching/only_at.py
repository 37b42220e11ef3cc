"""Parts of a model that run only at the positions whose results are read."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@contextmanager
def outputs_only_at(model: PreTrainedModel, where: Tensor) -> Iterator[None]:
    """Within, the output layer computes logits [1, K, V] only at K places `where` [K, 2] of (line, column).

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


@contextmanager
def mlp_only_at(block: nn.Module, places: Tensor) -> Iterator[None]:
    """Within, a block's MLP, which treats every token by itself, runs at these places of the lines alone.

    Nothing else is read of the last block, and this is most of its work. Its attention needs all tokens.
    """
    mlp = getattr(block, "mlp", None)
    if not isinstance(mlp, nn.Module):
        yield
        return
    forward, places = mlp.forward, places.unique()

    def at(states: Tensor, *others: Any) -> Any:
        found = None if others else forward(states.flatten(0, 1)[None, places])
        if not isinstance(found, Tensor):  # it is told or tells something about all of them
            return forward(states, *others)
        return found.new_zeros(states.flatten(0, 1).shape).index_copy(0, places, found[0]).view(states.shape)

    mlp.forward = at
    try:
        yield
    finally:
        mlp.forward = forward
