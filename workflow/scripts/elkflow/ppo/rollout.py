"""From prompts to sampled responses, and from token ids to the text that is scored."""

import string
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from elkflow.ppo.objective import entropy, token_logprobs
from elkflow.ppo.policy import Frozen, Policy


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


def generate(
    policy: Policy, rows: Sequence[Sequence[int]], uniform: Tensor | None, sampling: Sampling, ends: set[int]
) -> tuple[Tensor, Tensor]:
    """Sample responses of any length with a key-value cache.

    Args:
        rows: token ids of B prompts.
        uniform: random numbers [B, max_new_tokens]; None takes the likeliest tokens.
        ends: tokens that end a response.

    Returns:
        Tokens [B, max_new_tokens] (see `response_mask` for which of them count), and the last hidden states
        [B, max_new_tokens, D] that they were drawn from, in the gradients' graph if there is one.
    """
    layout, device = policy.lay(rows), policy.device
    # of a whole trie nothing may be dropped, though it is longer than a sliding window
    cache = DynamicCache() if layout.packed else DynamicCache(config=policy.base.config)
    tokens = torch.zeros(len(rows), sampling.max_new_tokens, dtype=torch.long, device=device)
    finished = torch.zeros(len(rows), dtype=torch.bool, device=device)
    states = [policy.read_prompts(layout, cache)]
    for t in range(sampling.max_new_tokens):
        logits = policy.logits(states[-1].detach()[:, 0])
        tokens[:, t] = draw(logits, None if uniform is None else uniform[:, t].to(device), sampling)
        finished |= torch.isin(tokens[:, t], torch.tensor(sorted(ends), device=device))
        if t + 1 == sampling.max_new_tokens or finished.all():
            break
        following = layout.following(tokens[:, : t + 1])
        lines = policy.run(layout, past_key_values=cache, use_cache=True, **following)
        states.append(lines[0, :, None] if layout.packed else lines)
    states += [states[-1]] * (sampling.max_new_tokens - len(states))  # nothing counts behind the last end
    return tokens, torch.cat(states, dim=1)


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
    whole: list[list[int]]
    """Token ids that go through the model: prompts and all but the last of each response."""
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

    def divided(self, policy: Policy, sizes: Sequence[int]) -> list["Chunk"]:
        """Parts of so many rows, without a graph."""
        parts, at = [], 0
        for size in sizes:
            part = slice(at, at := at + size)
            names = ("rows", "whole", "positions", "tokens", "mask", "logprobs", "reference", "values", "entropy")
            own = {name: getattr(self, name)[part] for name in names}
            parts.append(replace(self, frozen=policy.freeze(self.whole[part]), graph=None, **own))
        return parts


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

    A response is drawn from the very states that the first update differentiates. Where that update comes after others,
    a response of several tokens, sampled with a cache, is read once more as the update will: rounding is then the same.

    Args:
        uniform: random numbers [B, max_new_tokens].
        keep_graph: whether weights will be the same when the first update is made.
    """
    device, length = policy.device, sampling.max_new_tokens
    starts = torch.tensor([len(row) - 1 for row in prompts], device=device)[:, None]
    if length == 1:
        positions, whole = starts, [list(row) for row in prompts]
        frozen = policy.freeze(whole)
        with torch.set_grad_enabled(keep_graph):
            logits, values = policy(frozen, positions)
        tokens = draw(logits[:, 0].detach(), uniform[:, 0].to(device), sampling)[:, None]
        mask = torch.ones_like(values)
    else:
        reuse = keep_graph and not policy.checkpointing
        with torch.set_grad_enabled(reuse):
            tokens, states = generate(policy, prompts, uniform, sampling, ends)
        mask = response_mask(tokens, ends)
        counts = mask.sum(1).int().tolist()
        whole = [[*p, *t[: n - 1]] for p, t, n in zip(prompts, tokens.tolist(), counts, strict=True)]
        frozen = policy.freeze(whole)
        positions = starts + torch.arange(length, device=device)
        with torch.set_grad_enabled(keep_graph):
            logits, values = policy.read(states) if reuse else policy(frozen, positions)
    with torch.set_grad_enabled(keep_graph):
        graph = (token_logprobs(logits, tokens, sampling.temperature), values, entropy(logits, sampling.temperature))
    with policy.as_reference():
        reference = policy.logits(policy.states(frozen, positions))
        reference = token_logprobs(reference, tokens, sampling.temperature)
    detached = (tensor.detach() for tensor in graph)
    logprobs, values, entropies = detached
    kept = graph if keep_graph else None
    return Chunk(rows, whole, frozen, positions, tokens, mask, logprobs, reference, values, entropies, kept)


def end_tokens(policy: Policy, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that end a response: the model's own, and the tokenizer's."""
    own = getattr(policy.base.generation_config, "eos_token_id", None)
    listed = own if isinstance(own, list) else [own]
    return {token for token in (*listed, tokenizer.eos_token_id) if token is not None}


@dataclass(frozen=True)
class Answers:
    """What a policy answered to B questions, and what that was worth."""

    rows: list[int]
    """Indices of the questions."""
    responses: list[str]
    scores: Tensor
    """[B] float32, on the CPU."""


@dataclass(frozen=True)
class Rollout(Answers):
    """A batch of answers with what the update needs, T tokens each. Tensors are on the CPU, the same everywhere."""

    minibatches: list[list[Chunk]]
    """This process's share of every minibatch, in chunks that go through the model at once."""
    mask: Tensor
    """[B, T], like all that follow."""
    logprobs: Tensor
    reference: Tensor
    values: Tensor
    entropy: Tensor

    def numbers(self) -> dict[str, Tensor]:
        """What an update stands on, by the names it has in messages."""
        return {
            "rewards": self.scores,
            "log-probabilities": self.logprobs,
            "reference log-probabilities": self.reference,
            "values": self.values,
        }
