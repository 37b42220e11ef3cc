"""The output layer, run only at the positions whose logits are read."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
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
