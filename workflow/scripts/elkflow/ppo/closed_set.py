"""The mathematics of a closed set of answers whose rewards are all known: no sampling and no critic.

Shapes: B prompts with A allowed answers each; any other response is one more outcome, the last: [B, A + 1].
Log-probabilities and KL are in nats.
"""

import torch
from torch import Tensor

LEAST = 1e-6
"""Probability below which nothing pushes on the outcome "anything else": float32 does not resolve it."""


def with_remainder(logprobs: Tensor) -> Tensor:
    """Log-probabilities of the allowed answers [B, A], and of anything else -> [B, A + 1]."""
    remainder = (1 - logprobs.exp().sum(-1, keepdim=True)).clamp(min=LEAST)
    return torch.cat([logprobs, remainder.log()], dim=-1)


def optimal_policy(reference: Tensor, rewards: Tensor, coefficient: float) -> Tensor:
    """Log-probabilities of the policy that maximises E[reward] − coefficient · KL(policy || reference).

    It is proportional to reference · exp(reward / coefficient) (Korbak et al., arXiv:2205.11275; Rafailov et al.,
    arXiv:2305.18290, eq. 4): the better answer alone as the coefficient goes to 0, the reference as it grows. Adding a
    constant to a prompt's rewards changes nothing; scaling rewards and coefficient alike neither.

    Args:
        reference: log-probabilities [B, A + 1].
        rewards: [B, A + 1].
        coefficient: above 0.
    """
    return (reference + rewards / coefficient).log_softmax(-1)


def forward_kl(target: Tensor, logprobs: Tensor) -> Tensor:
    """KL(target || policy) of log-probabilities [B, A + 1] -> [B]. Its gradient does not vanish as the policy errs."""
    return torch.where(target.exp() > 0, target.exp() * (target - logprobs), 0.0).sum(-1)


def balanced(logprobs: Tensor) -> Tensor:
    """Log-probabilities [B, A + 1] that are the same for every allowed answer, and nothing for anything else."""
    answers = logprobs.shape[-1] - 1
    uniform = torch.full_like(logprobs, -torch.inf)
    uniform[..., :answers] = -torch.log(torch.tensor(float(answers)))
    return uniform


def preferred(rewards: Tensor) -> Tensor:
    """Log-probabilities [B, A + 1] of the allowed answer with the highest reward alone; of several, each as likely."""
    best = rewards[:, :-1] == rewards[:, :-1].amax(-1, keepdim=True)
    target = torch.full_like(rewards, -torch.inf)
    target[:, :-1][best] = -best.sum(-1, keepdim=True).float().log().expand_as(best)[best]
    return target


def dpo_losses(logprobs: Tensor, reference: Tensor, rewards: Tensor, coefficient: float) -> Tensor:
    """Direct preference optimisation of a prompt's best allowed answer over each worse one, mean over these -> [B].

    Of a pair: −log σ(coefficient · (log-ratio of the better − log-ratio of the worse)), log-ratios of policy to
    reference (Rafailov et al., arXiv:2305.18290, eq. 7). The better answer is always preferred, however small its lead.

    Args:
        logprobs, reference: [B, A + 1].
        rewards: [B, A + 1].
    """
    rewards, ratios = rewards[:, :-1], (logprobs - reference)[:, :-1]
    best = rewards.argmax(-1, keepdim=True)
    worse = rewards < rewards.gather(-1, best)
    losses = -torch.nn.functional.logsigmoid(coefficient * (ratios.gather(-1, best) - ratios))
    return (worse * losses).sum(-1) / worse.sum(-1).clamp(min=1)


def expected_advantages(rewards: Tensor, old: Tensor, reference: Tensor, coefficient: float) -> Tensor:
    """Advantage of every outcome [B, A + 1]: its reward and KL penalty, less their expectation under the old policy.

    The expectation is the exact value of the prompt, where PPO has a critic's estimate.
    """
    worth = rewards - coefficient * (old - reference)
    return worth - (old.exp() * worth).sum(-1, keepdim=True)


def scale_advantages(advantages: Tensor, old: Tensor) -> Tensor:
    """Advantages [B, A + 1] divided by their root mean square under the old policy."""
    square = (old.exp() * advantages**2).sum(-1).mean()
    return advantages * torch.rsqrt(square + 1e-8)


def expected_policy_losses(
    logprobs: Tensor, old: Tensor, advantages: Tensor, clip: float, clip_high: float | None = None
) -> tuple[Tensor, Tensor]:
    """PPO's clipped surrogate in expectation over all outcomes: losses [B], and the probability that was clipped [B].

    Every outcome counts with its old probability, instead of one sample for all (expected policy gradients: Ciosek &
    Whiteson, arXiv:1706.05374). A higher upper limit lets unlikely answers grow (Yu et al., arXiv:2503.14476).

    Args:
        clip, clip_high: ratios of new to old probability are clipped to [1 − clip, 1 + (clip_high or clip)].
    """
    ratio, weights = (logprobs - old).exp(), old.exp()
    clipped = ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    losses = torch.maximum(-advantages * ratio, -advantages * clipped)
    return (weights * losses).sum(-1), (weights * (losses > -advantages * ratio)).sum(-1).detach()
