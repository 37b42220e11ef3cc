"""Truth probes as pure functions: from the hidden states of contrast pairs to one direction per layer.

`positive` and `negative` are normalised states [L, N, D] of the two members of N pairs on L layers. All layers (and
restarts, penalties, folds) form one batched problem. A pair's log-odds are weight · (positive − negative) + bias.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from elkflow.probes.batched_lbfgs import Objective, lbfgs


class Direction(NamedTuple):
    """A method's fit on each layer: weight [L, D], bias [L], and further results, each [L]."""

    weight: Tensor
    bias: Tensor
    facts: dict[str, Tensor]


def principal_axes(difference: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal axes [L, D, K] (columns) of each layer's rows [L, N, D], and their mean squares [L, K], ascending.

    With fewer rows than features, the K = N axes that span the rows are computed from the rows' Gram matrix; axes
    without variation are zero.
    """
    rows, width = difference.shape[1:]
    if rows >= width:
        squares, axes = torch.linalg.eigh(torch.bmm(difference.mT, difference) / rows)
        return axes, squares.clamp(min=0)
    exact = difference.double()
    squares, mixed = torch.linalg.eigh(torch.bmm(exact, exact.mT) / rows)
    length = torch.where(squares > 1e-10 * squares[:, -1:], rows * squares, torch.inf).sqrt()
    return torch.bmm(exact.mT, mixed / length[:, None]).to(difference), squares.clamp(min=0).to(difference)


def logistic(
    difference: Tensor,
    labels: Tensor,
    l2: Tensor,
    weights: Tensor,
    *,
    axes: tuple[Tensor, Tensor] | None = None,
    tolerance: float = 1e-3,
) -> tuple[Tensor, Tensor, Tensor]:
    """L2-penalised logistic regression, P problems on each of L layers.

    Minimises Σᵢ wᵢ log(1 + exp(−yᵢ(w·xᵢ + b))) + λ/2 |w|², with weights that sum to one, y = ±1, and no penalty on b
    (Cox 1958; as scikit-learn's LogisticRegression with C = 1 / (λN)). Works in the rows' principal axes, each scaled
    by 1/√(square/4 + λ), where square/4 + λ is the largest curvature the loss can have (Böhning & Lindsay 1988). All
    problems of a layer share the axes, and need about a seventh of the steps they need in the features themselves.

    Args:
        difference: positive − negative [L, N, D].
        labels: 0 or 1, [P, N] or [N].
        l2: λ of each problem [P].
        weights: weight of each row in each problem [P, N].
        axes: `principal_axes(difference)`, if already known.
        tolerance: largest gradient norm at the solution.

    Returns:
        weight [L, P, D], bias [L, P] and value of the objective [L, P].
    """
    labels = labels.to(difference).expand(weights.shape)
    shares = (weights / weights.sum(-1, keepdim=True)).to(difference)
    turn, squares = axes or principal_axes(difference)
    turned = torch.bmm(difference, turn)
    scale = torch.rsqrt(squares[:, None, :] / 4 + l2.to(difference)[:, None])  # [L, P, K]

    def problems(layers: Tensor, which: Tensor) -> Objective:
        rows = turned if len(layers) == len(turned) else turned[layers]
        y, share, penalty = labels[which], shares[which], l2.to(difference)[which]  # [l, p, N] twice, [l, p]
        stretch = scale[layers[:, None], which]

        def objective(x: Tensor) -> tuple[Tensor, Tensor]:
            weight, bias = stretch * x[..., :-1], x[..., -1:]
            z = torch.baddbmm(bias, weight, rows.mT)
            value = (share * (softplus(z) - y * z)).sum(-1) + penalty / 2 * (weight**2).sum(-1)
            residual = share * (z.sigmoid() - y)
            slope = stretch * (torch.bmm(residual, rows) + penalty[..., None] * weight)
            return value, torch.cat([slope, residual.sum(-1, keepdim=True)], -1)

        return objective

    start = difference.new_zeros(len(difference), len(weights), turned.shape[-1] + 1)
    x, value = lbfgs(problems, start, tolerance=tolerance)
    return torch.bmm(scale * x[..., :-1], turn.mT), x[..., -1], value


def logistic_path(
    difference: Tensor, labels: Tensor, l2: list[float], folds: Tensor, *, tolerance: float = 1e-3
) -> Direction:
    """Logistic regression with each layer's penalty chosen by cross-validated log loss.

    Every penalty, on every fold and on all rows, is one problem of the batch.

    Args:
        difference, labels: see `logistic`; labels [N].
        l2: penalties to try.
        folds: fold of each row [N], 0 … K−1.
    """
    count = int(folds.max()) + 1
    inside = torch.stack([folds != fold for fold in range(count)] + [torch.ones_like(folds, dtype=torch.bool)])
    weights = inside.repeat_interleave(len(l2), 0)  # [(K+1) penalties, N]
    penalties = torch.tensor(l2, device=difference.device).repeat(count + 1)
    weight, bias, value = logistic(difference, labels, penalties, weights, tolerance=tolerance)
    z = torch.baddbmm(bias[:, None, :], difference, weight.mT).mT  # [L, P, N]
    loss = softplus(z) - labels.to(z) * z
    outside = (~weights[: count * len(l2)]).to(z)
    held_out = (loss[:, : len(outside)] * outside).sum(-1).unflatten(1, (count, len(l2))).sum(1) / len(labels)
    best = held_out.argmin(1)  # [L]
    rows, chosen = torch.arange(len(best), device=best.device), count * len(l2) + best
    facts = {
        "l2": penalties[best],
        "cross_validated_loss": held_out[rows, best],
        "loss": value[rows, chosen],
    }
    return Direction(weight[rows, chosen], bias[rows, chosen], facts)


def ccs(
    positive: Tensor, negative: Tensor, *, restarts: int, l2: float, seed: int, tolerance: float = 1e-3
) -> Direction:
    """Contrast-consistent search (Burns et al. 2022), without labels.

    With p± = σ(w·x± + b), minimises mean (p₊ + p₋ − 1)² + mean min(p₊, p₋)² + λ/2 |w|² from `restarts` random starts
    and keeps the lowest minimum. The sign of the result is arbitrary; b cancels in a pair's log-odds.
    """
    count, rows, width = positive.shape

    def problems(layers: Tensor, which: Tensor) -> Objective:
        ends = (positive, negative) if len(layers) == count else (positive[layers], negative[layers])

        def objective(x: Tensor) -> tuple[Tensor, Tensor]:
            weight, bias = x[..., :-1], x[..., -1:]
            p, q = (torch.baddbmm(bias, weight, end.mT).sigmoid() for end in ends)  # [l, r, N]
            excess, lower = p + q - 1, torch.minimum(p, q)
            value = (excess**2 + lower**2).mean(-1) + l2 / 2 * (weight**2).sum(-1)
            first = p <= q
            to_p = 2 / rows * (excess + lower * first) * p * (1 - p)
            to_q = 2 / rows * (excess + lower * ~first) * q * (1 - q)
            slope = torch.bmm(to_p, ends[0]) + torch.bmm(to_q, ends[1]) + l2 * weight
            return value, torch.cat([slope, (to_p + to_q).sum(-1, keepdim=True)], -1)

        return objective

    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(1, restarts, width + 1, generator=generator).to(positive) / math.sqrt(width)
    start[..., -1] = 0
    x, value = lbfgs(problems, start.repeat(count, 1, 1), tolerance=tolerance)
    best = value.argmin(1)
    kept = x[torch.arange(count, device=x.device), best]
    spread = value.max(1).values - value.min(1).values
    return Direction(kept[:, :-1], torch.zeros_like(kept[:, -1]), {"loss": value.min(1).values, "loss_spread": spread})


def mass_mean(difference: Tensor, labels: Tensor) -> Direction:
    """Difference of class means, θ = μ₁ − μ₀ (Marks & Tegmark 2023).

    Length and bias are those of linear discriminant analysis along θ alone, so that log-odds are calibrated if both
    classes are Gaussian: w = θ |θ|² / (θᵀΣθ).
    """
    centred, means = _within(difference, labels)
    theta = means[1] - means[0]
    spread = (torch.bmm(centred, theta[..., None]).squeeze(-1) ** 2).mean(1)
    weight = theta * ((theta**2).sum(-1) / spread.clamp(min=1e-12))[:, None]
    return Direction(weight, _midpoint(weight, means, labels), {})


def lda(difference: Tensor, labels: Tensor) -> Direction:
    """Linear discriminant analysis, w = Σ⁻¹(μ₁ − μ₀) (Fisher 1936), with Σ shrunk to a multiple of the identity.

    The amount of shrinkage has a closed form (Ledoit & Wolf 2004).
    """
    centred, means = _within(difference, labels)
    covariance, amount = ledoit_wolf(centred)
    weight = torch.cholesky_solve((means[1] - means[0])[..., None], torch.linalg.cholesky(covariance)).squeeze(-1)
    return Direction(weight, _midpoint(weight, means, labels), {"shrinkage": amount})


def ledoit_wolf(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Covariance of centred rows [L, N, D], shrunk to (1 − a) S + a tr(S)/D I; returns it [L, D, D] and a [L]."""
    rows, width = centred.shape[1:]
    sample = torch.bmm(centred.mT, centred) / rows
    trace = sample.diagonal(dim1=1, dim2=2).sum(-1)
    squared = (sample**2).sum((1, 2))
    distance = squared - trace**2 / width
    noise = (((centred**2).sum(-1) ** 2).mean(1) - squared) / rows
    amount = (noise / distance.clamp(min=1e-30)).clamp(0, 1)
    shrunk = (1 - amount)[:, None, None] * sample
    shrunk.diagonal(dim1=1, dim2=2).add_((amount * trace / width).clamp(min=1e-8)[:, None])
    return shrunk, amount


def vinc(
    positive: Tensor, negative: Tensor, wordings: int, *, variance: float, invariance: float, negative_covariance: float
) -> Direction:
    """Variance, invariance, negative covariance: the unsupervised probe of EleutherAI's elk, in closed form.

    The direction is the top eigenvector of v·Σ_between − i·Σ_within − c·(C + Cᵀ)/2, where Σ_between is the covariance
    of questions (averaged over wordings), Σ_within that of the wordings of one question, and C the cross-covariance of
    the pairs' members. Its sign is arbitrary; log-odds have unit standard deviation.

    Args:
        wordings: number of wordings; rows are all questions of the first, then of the second: N = wordings × questions.
    """
    spread = [states.unflatten(1, (wordings, -1)) for states in (positive, negative)]  # [L, V, Q, D]
    centres = [states.mean(1) - states.mean((1, 2))[:, None] for states in spread]
    questions = centres[0].shape[1]
    cross = torch.bmm(centres[0].mT, centres[1]) / questions
    total = -negative_covariance * (cross + cross.mT) / 2
    for states, centre in zip(spread, centres, strict=True):
        if variance:
            total = total + variance / 2 * torch.bmm(centre.mT, centre) / questions
        if invariance and wordings > 1:
            within = (states - states.mean(1, keepdim=True)).flatten(1, 2)
            total = total - invariance / 2 * torch.bmm(within.mT, within) / within.shape[1]
    return _unit_deviation(torch.linalg.eigh(total).eigenvectors[..., -1], positive - negative)


def crc(difference: Tensor) -> Direction:
    """Contrastive representation clustering, CRC-TPC (Burns et al. 2022): top principal component of the differences.

    Its sign is arbitrary; log-odds have unit standard deviation.
    """
    centred = difference - difference.mean(1, keepdim=True)
    return _unit_deviation(principal_axes(centred)[0][..., -1], difference)


def _within(difference: Tensor, labels: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Rows minus the mean of their class [L, N, D], and both class means [L, D]."""
    labels = labels.bool()
    means = (difference[:, ~labels].mean(1), difference[:, labels].mean(1))
    return difference - torch.where(labels[None, :, None], means[1][:, None], means[0][:, None]), means


def _midpoint(weight: Tensor, means: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
    """Bias [L] that puts the decision boundary midway between the means, shifted by the class log-odds."""
    share = labels.double().mean().clamp(1e-6, 1 - 1e-6)
    return -(weight * (means[0] + means[1])).sum(-1) / 2 + torch.log(share / (1 - share)).to(weight)


def _unit_deviation(weight: Tensor, difference: Tensor) -> Direction:
    """Scale directions [L, D] so that the rows' log-odds have standard deviation 1; the bias centres them."""
    scores = torch.bmm(difference, weight[..., None]).squeeze(-1)
    weight = weight / scores.std(1, correction=0).clamp(min=1e-12)[:, None]
    return Direction(weight, -torch.bmm(difference, weight[..., None]).mean((1, 2)), {})


def oriented(direction: Direction, difference: Tensor, reference: Tensor) -> Direction:
    """Flip directions whose log-odds have a negative covariance with `reference` [N]."""
    scores = torch.bmm(difference, direction.weight[..., None]).squeeze(-1)
    sign = torch.where(scores @ (reference - reference.mean()).to(scores) < 0, -1.0, 1.0).to(scores)
    return Direction(direction.weight * sign[:, None], direction.bias * sign, direction.facts | {"turned": sign < 0})
