"""L-BFGS for many small problems at once."""

from collections.abc import Callable

import torch
from torch import Tensor

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]
Problems = Callable[[Tensor, Tensor], Objective]


def lbfgs(
    problems: Problems, start: Tensor, *, tolerance: float = 1e-3, iterations: int = 300, memory: int = 10
) -> tuple[Tensor, Tensor]:
    """Minimise independent smooth functions in parallel (Nocedal & Wright 2006, algorithms 7.4 and 3.1).

    P problems on each of L layers. Every problem has its own curvature history and step size, so that the others do not
    affect it, and stays where it is once it has converged. Some take many times as long as most: converged problems are
    dropped from the computation as soon as that shrinks it by a quarter.

    Args:
        problems: given layers [l] and problems of each [l, p], returns the function that maps their points [l, p, n]
            to values [l, p] and gradients [l, p, n].
        start: initial points [L, P, n].
        tolerance: a problem has converged when its gradient norm is at most this.
        iterations: maximum number of iterations.
        memory: number of (step, gradient change) pairs in the curvature history.

    Returns:
        Final points [L, P, n] and their values [L, P].
    """
    x, points = start, start.clone()
    layers = torch.arange(start.shape[0], device=start.device)
    which = torch.arange(start.shape[1], device=start.device).expand(start.shape[:2])
    objective = problems(layers, which)
    value, gradient = objective(x)
    values = value.clone()
    history: list[tuple[Tensor, Tensor, Tensor]] = []
    stuck = torch.zeros_like(value, dtype=torch.bool)
    for _ in range(iterations):
        moving = (gradient.norm(dim=-1) > tolerance) & ~stuck
        if not moving.any():
            break
        pick = _smaller(moving)
        if pick is not None:
            points[layers[:, None], which], values[layers[:, None], which] = x, value
            layers, which = layers[pick[0][:, 0]], which[pick]
            objective = problems(layers, which)
            x, value, gradient, stuck, moving = (each[pick] for each in (x, value, gradient, stuck, moving))
            history = [(moved[pick], turned[pick], inverse[pick]) for moved, turned, inverse in history]
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
    points[layers[:, None], which], values[layers[:, None], which] = x, value
    return points, values


def _smaller(moving: Tensor) -> tuple[Tensor, Tensor] | None:
    """Index [l, p] of the problems to continue: all that are `moving` [L, P], and others only to fill the array.

    None if that would save less than a quarter.
    """
    left = moving.sum(1)
    rows, width = left.nonzero()[:, 0], int(left.max())
    if 4 * len(rows) * width > 3 * moving.numel():
        return None
    return rows[:, None], moving[rows].int().argsort(dim=1, descending=True, stable=True)[:, :width]


def _backtrack(
    objective: Objective, x: Tensor, value: Tensor, direction: Tensor, slope: Tensor, step: Tensor, tries: int = 15
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shorten steps [...] until each value decreases enough (Armijo), up to its rounding error."""
    slack = 4 * torch.finfo(value.dtype).eps * value.abs()
    for _ in range(tries):
        new_x = x + step[..., None] * direction
        new_value, new_gradient = objective(new_x)
        accepted = new_value <= value + 1e-4 * step * slope + slack
        if accepted.all():
            break
        # minimum of the parabola through both values and the slope
        best = -slope * step**2 / (2 * (new_value - value - slope * step))
        shorter = torch.minimum(torch.maximum(best.nan_to_num(0), 0.1 * step), 0.5 * step)
        step = torch.where(accepted, step, shorter)
    return new_x, new_value, new_gradient, accepted


def _pair(moved: Tensor, turned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A history entry (step, gradient change, inverse curvature); the last is 0, for no effect, unless positive."""
    product = (moved * turned).sum(-1)
    useful = product > 1e-10 * (turned**2).sum(-1)
    return moved, turned, torch.where(useful, 1 / product.where(useful, torch.ones_like(product)), 0)


def _inverse_hessian_times(gradient: Tensor, history: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Search direction by the two-loop recursion."""
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
