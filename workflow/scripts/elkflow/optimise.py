"""L-BFGS for many small problems at once."""

from collections.abc import Callable

import torch
from torch import Tensor

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]


def lbfgs(
    objective: Objective, start: Tensor, *, tolerance: float = 1e-3, iterations: int = 300, memory: int = 10
) -> tuple[Tensor, Tensor]:
    """Minimise independent smooth functions side by side (Nocedal & Wright 2006, algorithms 7.4 and 3.1).

    Every problem has its own curvature history and its own step, so each runs as if it were alone: a problem that has
    converged stays where it is while others go on.

    Args:
        objective: maps points [..., n] to values [...] and gradients [..., n].
        start: first points [..., n].
        tolerance: a problem ends when the norm of its gradient is no larger.
        memory: pairs of steps and gradient changes that stand for the curvature.

    Returns:
        Points [..., n] and their values [...].
    """
    x = start.clone()
    value, gradient = objective(x)
    history: list[tuple[Tensor, Tensor, Tensor]] = []
    stuck = torch.zeros_like(value, dtype=torch.bool)
    for _ in range(iterations):
        moving = (gradient.norm(dim=-1) > tolerance) & ~stuck
        if not moving.any():
            break
        direction = -_inverse_hessian_times(gradient, history)
        slope = (direction * gradient).sum(-1)
        uphill = slope >= 0
        if uphill.any():
            direction = torch.where(uphill[..., None], -gradient, direction)
            slope = torch.where(uphill, -(gradient**2).sum(-1), slope)
        step = torch.ones_like(value) if history else 1 / gradient.norm(dim=-1).clamp(min=1)
        step = torch.where(moving, step, 0)
        new_x, new_value, new_gradient, accepted = _backtrack(objective, x, value, direction, slope, step)
        stuck |= moving & ~accepted
        accepted &= moving
        new_x = torch.where(accepted[..., None], new_x, x)
        new_gradient = torch.where(accepted[..., None], new_gradient, gradient)
        history = [*history[-memory + 1 :], _pair(new_x - x, new_gradient - gradient)]
        x, value, gradient = new_x, torch.where(accepted, new_value, value), new_gradient
    return x, value


def _backtrack(
    objective: Objective, x: Tensor, value: Tensor, direction: Tensor, slope: Tensor, step: Tensor, tries: int = 15
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shorten steps [...] until each value falls enough (Armijo); rounding of the value itself is forgiven."""
    slack = 4 * torch.finfo(value.dtype).eps * value.abs()
    for _ in range(tries):
        new_x = x + step[..., None] * direction
        new_value, new_gradient = objective(new_x)
        accepted = new_value <= value + 1e-4 * step * slope + slack
        if accepted.all():
            break
        # the parabola through both values and the slope has its lowest point here
        best = -slope * step**2 / (2 * (new_value - value - slope * step))
        shorter = torch.minimum(torch.maximum(best.nan_to_num(0), 0.1 * step), 0.5 * step)
        step = torch.where(accepted, step, shorter)
    return new_x, new_value, new_gradient, accepted


def _pair(moved: Tensor, turned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A history entry; where curvature is not positive (or nothing moved) it has no effect, as its last part is 0."""
    product = (moved * turned).sum(-1)
    useful = product > 1e-10 * (turned**2).sum(-1)
    return moved, turned, torch.where(useful, 1 / product.where(useful, torch.ones_like(product)), 0)


def _inverse_hessian_times(gradient: Tensor, history: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The two-loop recursion."""
    q, factors = gradient, []
    for moved, turned, inverse in reversed(history):
        factor = inverse * (moved * q).sum(-1)
        q = q - factor[..., None] * turned
        factors.append(factor)
    scale = torch.ones_like(gradient[..., 0])
    for _, turned, inverse in history:  # the newest useful entry decides
        scale = torch.where(inverse > 0, 1 / (inverse * (turned**2).sum(-1)).clamp(min=1e-30), scale)
    q = q * scale[..., None]
    for (moved, turned, inverse), factor in zip(history, reversed(factors), strict=True):
        q = q + (factor - inverse * (turned * q).sum(-1))[..., None] * moved
    return q
