"""From prompts to sampled responses, and from token ids to the text that is scored."""

import string
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from elkflow.policy import Frozen, Policy, padded
from elkflow.ppo import entropy, token_logprobs


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
    policy: Policy, rows: Sequence[Sequence[int]], uniform: Tensor | None, sampling: Sampling, ends: set[int]
) -> Tensor:
    """Sample responses of any length with a key-value cache.

    Args:
        rows: token ids of B prompts.
        uniform: random numbers [B, max_new_tokens]; None takes the likeliest tokens.
        ends: tokens that end a response.

    Returns:
        Tokens [B, max_new_tokens]; see `response_mask` for which of them count.
    """
    device = policy.device
    lengths = torch.tensor([len(row) for row in rows], device=device)
    ids = padded(rows, device)
    attend = (torch.arange(ids.shape[1], device=device) < lengths[:, None]).long()
    cache = DynamicCache(config=policy.base.config)
    tokens = torch.zeros(len(rows), sampling.max_new_tokens, dtype=torch.long, device=device)
    finished = torch.zeros(len(rows), dtype=torch.bool, device=device)
    hidden = policy.trunk(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
    hidden = hidden[torch.arange(len(rows)), lengths - 1]
    for t in range(sampling.max_new_tokens):
        tokens[:, t] = draw(policy.logits(hidden), None if uniform is None else uniform[:, t].to(device), sampling)
        finished |= torch.isin(tokens[:, t], torch.tensor(sorted(ends), device=device))
        if t + 1 == sampling.max_new_tokens or finished.all():
            break
        attend = torch.cat([attend, attend.new_ones(len(rows), 1)], dim=1)
        hidden = policy.trunk(
            input_ids=tokens[:, t : t + 1],
            attention_mask=attend,
            position_ids=(lengths + t)[:, None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, 0]
    return tokens


def response_mask(tokens: Tensor, ends: set[int]) -> Tensor:
    """1.0 up to and with the first end token, 0.0 after it. tokens [B, T] -> [B, T]."""
    ended = torch.isin(tokens, torch.tensor(sorted(ends), device=tokens.device)).long()
    return (ended.cumsum(1) - ended == 0).float()


def response_text(text: str, strip_punctuation: bool = True) -> str:
    """A response as it is scored: no white space around it and, as in the thesis, no punctuation behind it."""
    return text.strip().rstrip(string.punctuation + string.whitespace) if strip_punctuation else text.strip()


@dataclass
class Chunk:
    """Sampled responses of a few prompts, with what the update needs of them; B rows, T tokens."""

    rows: list[int]
    """Positions in the rollout batch."""
    frozen: Frozen
    positions: Tensor
    """Where each token is predicted [B, T]."""
    tokens: Tensor
    mask: Tensor
    logprobs: Tensor
    reference: Tensor
    values: Tensor
    entropy: Tensor
    graph: tuple[Tensor, Tensor, Tensor] | None
    """Log-probabilities, values and entropies with their gradients' graph, if the first update may use it."""


def collect(
    policy: Policy,
    rows: list[int],
    prompts: Sequence[Sequence[int]],
    uniform: Tensor,
    sampling: Sampling,
    ends: set[int],
    keep_graph: bool,
) -> Chunk:
    """Sample responses to `prompts` and read log-probabilities, reference and values in the same pass.

    A response of one token is drawn from the very logits that the first update differentiates; a longer one is
    generated with a cache first.

    Args:
        uniform: random numbers [B, max_new_tokens].
        keep_graph: whether weights will be the same when the first update is made.
    """
    device, length = policy.device, sampling.max_new_tokens
    starts = torch.tensor([len(row) - 1 for row in prompts], device=device)[:, None]
    if length == 1:
        positions, frozen = starts, policy.freeze(prompts)
        with torch.set_grad_enabled(keep_graph):
            logits, values = policy(frozen, positions)
        tokens = draw(logits[:, 0].detach(), uniform[:, 0].to(device), sampling)[:, None]
        mask = torch.ones_like(values)
    else:
        tokens = generate(policy, prompts, uniform, sampling, ends)
        mask = response_mask(tokens, ends)
        counts = mask.sum(1).int().tolist()
        whole = [[*p, *t[: n - 1]] for p, t, n in zip(prompts, tokens.tolist(), counts, strict=True)]
        frozen = policy.freeze(whole)
        positions = (starts + torch.arange(length, device=device)).clamp(max=frozen.ids.shape[1] - 1)
        with torch.set_grad_enabled(keep_graph):
            logits, values = policy(frozen, positions)
    with torch.set_grad_enabled(keep_graph):
        graph = (token_logprobs(logits, tokens, sampling.temperature), values, entropy(logits, sampling.temperature))
    with policy.as_reference():
        reference = policy.logits(policy.states(frozen, positions))
        reference = token_logprobs(reference, tokens, sampling.temperature)
    detached = (tensor.detach() for tensor in graph)
    logprobs, values, entropies = detached
    return Chunk(
        rows, frozen, positions, tokens, mask, logprobs, reference, values, entropies, graph if keep_graph else None
    )


def end_tokens(policy: Policy, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that end a response: the model's own, and the tokenizer's."""
    own = getattr(policy.base.generation_config, "eos_token_id", None)
    listed = own if isinstance(own, list) else [own]
    return {token for token in (*listed, tokenizer.eos_token_id) if token is not None}
