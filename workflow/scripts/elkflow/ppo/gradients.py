"""Gradients of all processes: all-reduced, checked and clipped."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from elkflow.ppo.finite import kind_of, listed


def reduce(
    trained: Sequence[tuple[str, torch.nn.Parameter]],
    accelerator: Accelerator,
    limit: float | None,
    rows: Sequence[str],
) -> float:
    """Sum gradients over processes, clip their norm to `limit`, and return the norm before clipping.

    Args:
        trained: names and parameters.
        limit: gradient-norm clipping threshold; None for no clipping.
        rows: names of the rows they come from, for the message.

    Raises:
        FloatingPointError: a gradient is NaN or infinity; names the first such parameter, and the rows.
    """
    parameters = [parameter for _, parameter in trained]
    if accelerator.num_processes > 1:
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = accelerator.reduce(torch.cat([p.grad.flatten() for p in parameters]))  # type: ignore[union-attr]
        for parameter, piece in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad.copy_(piece.view_as(parameter))  # type: ignore[union-attr]
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    if not norm.isfinite():
        for name, parameter in trained:
            if parameter.grad is not None and not parameter.grad.isfinite().all():
                raise FloatingPointError(f"gradient of {name} from {listed(rows)}: {kind_of(parameter.grad)}")
        raise FloatingPointError(f"gradients from {listed(rows)}: their norm overflows")
    clip_grads_with_norm_(parameters, limit or float("inf"), norm)
    return float(norm)
