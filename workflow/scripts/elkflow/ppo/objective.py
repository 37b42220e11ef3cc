"""PPO's mathematics as pure functions of tensors (Schulman et al., 2017; Ziegler et al., 2019).

Shapes: B responses, T tokens each, V tokens in the vocabulary. A mask [B, T] is 1 on real tokens and 0 after the
end of a response; masked positions are ignored. Log-probabilities and KL are in nats.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each token. logits [..., V], tokens [...] -> [...] float32."""
    logits = logits.float() / temperature
    return logits.gather(-1, tokens[..., None])[..., 0] - logits.logsumexp(-1)


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy of the next token. logits [..., V] -> [...] float32."""
    logprobs = (logits.float() / temperature).log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over real tokens; masked positions are ignored, even NaN."""
    return torch.where(mask.bool(), values, 0.0).sum()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens; 0 if there are none."""
    return masked_sum(values, mask) / mask.sum().clamp(min=1)


def masked_variance(values: Tensor, mask: Tensor) -> Tensor:
    """Unbiased variance over real tokens; 0 for fewer than two."""
    count = mask.sum()
    return masked_sum((values - masked_mean(values, mask)) ** 2, mask) / (count - 1).clamp(min=1)


def whiten(values: Tensor, mask: Tensor, keep_mean: bool = False) -> Tensor:
    """Scale real tokens to variance 1 and, unless `keep_mean`, shift them to mean 0; zeros elsewhere."""
    mean = masked_mean(values, mask)
    white = (values - mean) * torch.rsqrt(masked_variance(values, mask) + 1e-8)
    return torch.where(mask.bool(), white + mean if keep_mean else white, 0.0)


def kl(logprobs: Tensor, reference: Tensor, estimator: str = "k1") -> Tensor:
    """KL(policy || reference), estimated at sampled tokens, elementwise (Schulman, "Approximating KL", 2020).

    k1 = log p/q is unbiased and may be negative; k2 = (log p/q)^2 / 2; k3 = q/p - 1 - log q/p is unbiased and >= 0.
    """
    difference = logprobs - reference
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return 0.5 * difference**2
    if estimator == "k3":
        return torch.expm1(-difference) + difference
    raise ValueError(estimator)


def token_rewards(scores: Tensor, penalties: Tensor, mask: Tensor) -> Tensor:
    """Reward of each token: minus its KL penalty, plus the response's score at its last token.

    Args:
        scores: of each response [B].
        penalties: KL times its coefficient [B, T].
    """
    last = torch.arange(mask.shape[1], device=mask.device) == mask.sum(1, keepdim=True) - 1
    return torch.where(mask.bool(), -penalties, 0.0) + last * scores[:, None]


def advantages(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and returns (Schulman et al., 2016).

    Args:
        rewards, values: [B, T]; the state after the last token has value 0.

    Returns:
        advantages and returns = advantages + values, both [B, T], 0 after the end.
    """
    rewards, values = (torch.where(mask.bool(), x, 0.0) for x in (rewards, values))
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    errors = rewards + gamma * following - values
    result, carried = torch.zeros_like(values), torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        carried = torch.where(mask[:, t].bool(), errors[:, t] + gamma * lam * carried, 0.0)
        result[:, t] = carried
    return result, result + values


def policy_losses(logprobs: Tensor, old: Tensor, advantage: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """PPO's clipped surrogate, elementwise: losses and whether they were clipped."""
    ratio = torch.exp(logprobs - old)
    free, clipped = -advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(free, clipped), clipped > free


def value_losses(values: Tensor, old: Tensor, returns: Tensor, clip: float | None) -> tuple[Tensor, Tensor]:
    """Half the squared error of values, clipped to `clip` around the old ones: losses and whether they were clipped."""
    free = 0.5 * (values - returns) ** 2
    if clip is None:
        return free, torch.zeros_like(free, dtype=torch.bool)
    clipped = 0.5 * (old + (values - old).clamp(-clip, clip) - returns) ** 2
    return torch.maximum(free, clipped), clipped > free


@dataclass
class KLController:
    """The KL penalty's coefficient from step to step."""

    coefficient: float
    control: str = "fixed"
    target: float = 6.0
    horizon: float = 10_000
    final: float = 0.0

    def update(self, observed: float, responses: int, remaining: int) -> None:
        """Move the coefficient after a step.

        Args:
            observed: mean KL of a response, summed over its tokens.
            responses: how many there were.
            remaining: steps still to come.
        """
        if self.control == "adaptive":
            error = min(max(observed / self.target - 1, -0.2), 0.2)
            self.coefficient *= 1 + error * responses / self.horizon
        elif self.control == "linear":
            self.coefficient += (self.final - self.coefficient) / (remaining + 1)
