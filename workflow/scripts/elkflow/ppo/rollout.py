"""Rollouts: from prompts to sampled responses and what the policy thinks of them, as plain tensors.

A `Rollout` holds a whole batch, the same on every process. For the update it is cut into `Microbatch`es.
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from elkflow.ppo.objective import entropy, token_logprobs
from elkflow.ppo.policy import Policy
from elkflow.ppo.trunk import FrozenBlocksOutput


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 1


def draw(logits: Tensor, uniform: Tensor | None, sampling: Sampling) -> Tensor:
    """Next tokens: where `uniform` falls in the cumulative distribution, or the likeliest if it is None.

    Equal random numbers give equal samples, however the logits were computed and the batch was divided.

    Args:
        logits: [B, V].
        uniform: [B] in [0, 1).
    """
    if uniform is None:
        return logits.argmax(-1)
    probabilities = (logits.double() / sampling.temperature).softmax(-1)
    if sampling.top_k:
        least = probabilities.topk(min(sampling.top_k, logits.shape[-1])).values[:, -1:]
        probabilities = probabilities.where(probabilities >= least, 0)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        above = ordered.cumsum(-1) - ordered  # probability of all that is likelier
        kept = torch.zeros_like(probabilities, dtype=torch.bool).scatter(-1, order, above < sampling.top_p)
        probabilities = probabilities.where(kept, 0)
    cumulative = probabilities.cumsum(-1)
    found = torch.searchsorted(cumulative, uniform.double()[:, None] * cumulative[:, -1:], right=True)[:, 0]
    last = logits.shape[-1] - 1 - probabilities.flip(-1).ne(0).to(torch.uint8).argmax(-1)  # rounding may pass the end
    return torch.minimum(found, last)


@torch.no_grad()
def generate(
    policy: Policy, prompts: Sequence[Sequence[int]], uniform: Tensor | None, sampling: Sampling, ends: set[int]
) -> Tensor:
    """Sample responses: of one token by a plain pass, of several with a key-value cache where that is right.

    Args:
        prompts: token ids of B prompts.
        uniform: random numbers [B, max_new_tokens]; None takes the likeliest tokens.
        ends: tokens that end a response.

    Returns:
        Tokens [B, max_new_tokens]; see `response_mask` for which of them count.
    """
    device = policy.device
    if sampling.max_new_tokens == 1:
        last = torch.tensor([[len(prompt) - 1] for prompt in prompts], device=device)
        logits, _ = policy(policy.run_frozen_blocks(prompts), last)
        return draw(logits[:, 0], None if uniform is None else uniform[:, 0].to(device), sampling)[:, None]
    tokens = torch.zeros(len(prompts), sampling.max_new_tokens, dtype=torch.long, device=device)
    finished = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    states, read = policy.trunk.read_prompts(prompts)
    for t in range(sampling.max_new_tokens):
        logits = policy.logits(states[:, 0])
        tokens[:, t] = draw(logits, None if uniform is None else uniform[:, t].to(device), sampling)
        finished |= torch.isin(tokens[:, t], torch.tensor(sorted(ends), device=device))
        if t + 1 == sampling.max_new_tokens or finished.all():
            break
        states = policy.trunk.read_next(read, tokens[:, : t + 1])
    return tokens


def response_mask(tokens: Tensor, ends: set[int]) -> Tensor:
    """1.0 up to and including the first end token, 0.0 after it. tokens [B, T] -> [B, T]."""
    ended = torch.isin(tokens, torch.tensor(sorted(ends), device=tokens.device)).long()
    return (ended.cumsum(1) - ended == 0).float()


def response_text(text: str, strip_punctuation: bool = True) -> str:
    """A response as it is scored: without surrounding white space and, as in the thesis, trailing punctuation."""
    return text.strip().rstrip(string.punctuation + string.whitespace) if strip_punctuation else text.strip()


def end_tokens(policy: Policy, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that end a response: the model's own, and the tokenizer's."""
    own = getattr(policy.base.generation_config, "eos_token_id", None)
    listed = own if isinstance(own, list) else [own]
    return {token for token in (*listed, tokenizer.eos_token_id) if token is not None}


@dataclass(frozen=True)
class Answers:
    """A policy's answers to B questions, and their rewards."""

    rows: list[int]
    """Indices of the questions."""
    responses: list[str]
    scores: Tensor
    """[B] float32, on the CPU."""


@dataclass(frozen=True)
class Rollout(Answers):
    """A batch of answers with what the update needs: tensors [B, T] on the CPU, the same on every process."""

    token_ids: list[list[int]]
    """Of each row, what the model reads: the prompt and all but the last token of the response."""
    positions: Tensor
    """Where in `token_ids` each response token is predicted."""
    tokens: Tensor
    """Of the responses."""
    mask: Tensor
    logprobs: Tensor
    reference: Tensor
    """The reference's log-probabilities of the same tokens."""
    values: Tensor
    entropy: Tensor

    def numbers(self) -> dict[str, Tensor]:
        """What an update is computed from, by the names it has in messages."""
        return {
            "rewards": self.scores,
            "log-probabilities": self.logprobs,
            "reference log-probabilities": self.reference,
            "values": self.values,
        }


@dataclass(frozen=True)
class Microbatch:
    """Rows of a rollout that go through the model together, on its device."""

    rows: list[int]
    """Their positions in the rollout."""
    frozen: FrozenBlocksOutput
    positions: Tensor
    tokens: Tensor
    mask: Tensor
    logprobs: Tensor
    values: Tensor


def cut(policy: Policy, rollout: Rollout, rows: list[int]) -> Microbatch:
    """A microbatch of these rows."""
    frozen = policy.run_frozen_blocks([rollout.token_ids[row] for row in rows])
    names = ("positions", "tokens", "mask", "logprobs", "values")
    return Microbatch(rows, frozen, **{name: getattr(rollout, name)[rows].to(policy.device) for name in names})


def read_by_model(prompts: Sequence[Sequence[int]], tokens: Tensor, mask: Tensor) -> tuple[list[list[int]], Tensor]:
    """`Rollout.token_ids` and `Rollout.positions` of responses [B, T] to B prompts."""
    counts = mask.sum(1).int().tolist()
    ids = [[*p, *row[: n - 1]] for p, row, n in zip(prompts, tokens.tolist(), counts, strict=True)]
    starts = torch.tensor([len(prompt) - 1 for prompt in prompts], device=tokens.device)
    return ids, starts[:, None] + torch.arange(tokens.shape[1], device=tokens.device)


@torch.no_grad()
def collect(
    policy: Policy, prompts: Sequence[Sequence[int]], uniform: Tensor, sampling: Sampling, ends: set[int]
) -> dict[str, Tensor]:
    """Sample responses to B prompts, and read their log-probabilities, reference, values and entropies.

    A response of several tokens, sampled with a cache, is read once more as the update will read it, so that both
    round alike; one of a single token is drawn from that very pass.

    Args:
        uniform: random numbers [B, max_new_tokens].

    Returns:
        The tensors of a `Rollout` of these prompts, by name, on the policy's device.
    """
    tokens = torch.zeros(len(prompts), 1, dtype=torch.long, device=policy.device)  # drawn below, if there is only one
    if sampling.max_new_tokens > 1:
        tokens = generate(policy, prompts, uniform, sampling, ends)
    mask = response_mask(tokens, ends)
    ids, positions = read_by_model(prompts, tokens, mask)
    frozen = policy.run_frozen_blocks(ids)
    logits, values = policy(frozen, positions)
    if sampling.max_new_tokens == 1:
        tokens = draw(logits[:, 0], uniform[:, 0].to(policy.device), sampling)[:, None]
    with policy.as_reference():
        reference, _ = policy(frozen, positions)
    return {
        "tokens": tokens,
        "mask": mask,
        "logprobs": token_logprobs(logits, tokens, sampling.temperature),
        "reference": token_logprobs(reference, tokens, sampling.temperature),
        "values": values,
        "entropy": entropy(logits, sampling.temperature),
    }
