"""Sampling: equal random numbers give equal samples, one token or many, cached or not."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_llama
from transformers import AutoModelForCausalLM, MistralConfig

from elkflow.config.ppo import PPOSettings
from elkflow.ppo.policy import Policy
from elkflow.ppo.rollout import (
    Rollout,
    Sampling,
    collect,
    cut,
    draw,
    generate,
    read_by_model,
    response_mask,
    response_text,
)

PROMPTS = [[5, 9, 11], [7, 8, 9, 10, 4, 20], [30, 31], [7, 8, 9, 12, 13], [5, 9], [30, 31]]
"""Some begin alike, one is the beginning of another, and one is there twice."""
END = {3}


def policy(**settings):
    return Policy(tiny_llama(40), PPOSettings(steps=1, **settings))


def test_draw_follows_the_cumulative_distribution():
    logits = torch.tensor([0.2, 0.5, 0.3]).log().expand(7, 3)
    uniform = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 0.999999, 1.0])
    assert draw(logits, uniform, Sampling()).tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert draw(logits, uniform, Sampling(top_k=2)).tolist() == [1, 1, 1, 2, 2, 2, 2]
    assert draw(logits, uniform, Sampling(top_p=0.5)).tolist() == [1] * 7
    assert draw(logits, uniform, Sampling(top_p=0.51)).tolist() == [1, 1, 1, 2, 2, 2, 2]
    assert draw(logits, None, Sampling()).tolist() == [1] * 7


@given(st.floats(0, 1), st.integers(0, 3), st.floats(0.1, 1))
def test_an_impossible_token_is_never_drawn(uniform, top_k, top_p):
    logits = torch.tensor([[-math.inf, 1.0, 0.5, -math.inf]])
    token = draw(logits, torch.tensor([uniform]), Sampling(top_k=top_k, top_p=top_p)).item()
    assert token in ((1, 2) if top_k != 1 else (1,))


def test_temperature_sharpens():
    logits, uniform = torch.tensor([0.4, 0.6]).log().expand(1000, 2), torch.linspace(0, 0.999, 1000)
    assert draw(logits, uniform, Sampling(temperature=0.5)).float().mean() == pytest.approx(0.36 / 0.52, abs=0.01)


def naive(made, prompts, uniform, sampling):
    """Token by token, prompt by prompt, the whole model over the whole text each time."""
    rows = []
    for row, numbers in zip(prompts, uniform, strict=True):
        tokens = []
        for number in numbers:
            with torch.no_grad():
                logits = made.model(input_ids=torch.tensor([row + tokens])).logits[:, -1].float()
            tokens.append(draw(logits, number[None], sampling).item())
            if tokens[-1] in END:
                break
        rows.append(tokens)
    return rows


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("longest", [256, 0], ids=["a prefix tree", "padded lines"])
@pytest.mark.parametrize("layers", ["all", 2])
def test_samples_are_those_of_the_plain_model(length, layers, longest):
    made, sampling = policy(layers=layers), Sampling(max_new_tokens=length)
    assert made.trunk.longest == 256
    made.trunk.longest = longest
    with torch.no_grad():  # an adapter that does something
        for name, parameter in made.trained(value_head=False):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    for seed in range(8):
        uniform = torch.rand(len(PROMPTS), length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        wanted = naive(made, PROMPTS, uniform, sampling)
        tokens = generate(made, PROMPTS, uniform, sampling, END)
        mask = response_mask(tokens, END)
        assert [row[: int(n)] for row, n in zip(tokens.tolist(), mask.sum(1), strict=True)] == wanted
        found = collect(made, PROMPTS, uniform, sampling, END)
        assert not any(tensor.requires_grad for tensor in found.values())
        assert torch.equal(found["tokens"] * found["mask"], tokens * mask)
        for i, row in enumerate(wanted):
            with torch.no_grad():
                logits = made.model(input_ids=torch.tensor([PROMPTS[i] + row])).logits[0].float()
            logprobs = logits.log_softmax(-1)[len(PROMPTS[i]) - 1 : -1].gather(1, torch.tensor(row)[:, None])[:, 0]
            torch.testing.assert_close(found["logprobs"][i, : len(row)], logprobs, atol=1e-5, rtol=0)


def test_a_prefix_tree_may_be_longer_than_a_sliding_window():
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MistralConfig(vocab_size=40, num_key_value_heads=1, sliding_window=256, **shape)
    torch.manual_seed(0)
    made = Policy(AutoModelForCausalLM.from_config(config).eval(), PPOSettings(steps=1))
    prompts = [[4 + (row * step) % 36 for step in range(1, 60)] for row in range(1, 8)]
    assert made.trunk.make_layout(prompts).packed and made.trunk.make_layout(prompts).ids.numel() > 256
    uniform, sampling = torch.rand(7, 3, generator=torch.Generator().manual_seed(0)), Sampling(max_new_tokens=3)
    tokens = generate(made, prompts, uniform, sampling, set())
    assert tokens.tolist() == naive(made, prompts, uniform, sampling)


def test_some_of_those_responses_end_early():
    made, sampling = policy(), Sampling(max_new_tokens=5)
    uniform = torch.rand(60, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = response_mask(generate(made, PROMPTS * 10, uniform, sampling, END), END).sum(1)
    assert counts.min() < 5 and counts.max() == 5


@pytest.mark.parametrize("length", [1, 3])
def test_a_microbatch_is_read_as_its_rollout_was(length):
    made, sampling = policy(), Sampling(max_new_tokens=length)
    uniform = torch.rand(6, length, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tensors = collect(made, PROMPTS, uniform, sampling, END)
    ids, positions = read_by_model(PROMPTS, tensors["tokens"], tensors["mask"])
    assert all(row[: len(prompt)] == prompt for row, prompt in zip(ids, PROMPTS, strict=True))
    whole = Rollout(list(range(6)), [""] * 6, torch.zeros(6), ids, positions, **tensors)
    for rows in ([3], [1, 4], [0, 5, 2]):
        part = cut(made, whole, rows)
        assert part.rows == rows and torch.equal(part.tokens, whole.tokens[rows])
        logits, values = made(part.frozen, part.positions)
        found = logits.log_softmax(-1).gather(-1, part.tokens[..., None])[..., 0]
        torch.testing.assert_close(found * part.mask, whole.logprobs[rows] * part.mask, atol=1e-5, rtol=0)
        torch.testing.assert_close(values * part.mask, whole.values[rows] * part.mask, atol=1e-5, rtol=0)


def test_the_mask_ends_with_the_end_token():
    tokens = torch.tensor([[5, 3, 3, 7], [3, 5, 5, 5], [5, 6, 7, 8]])
    assert response_mask(tokens, END).tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("text", "kept"),
    [(" Yes.", "Yes"), ("Yes!?\n", "Yes"), ("No", "No"), (" Yes , No", "Yes , No"), ("...", ""), ("", "")],
)
def test_responses_lose_space_and_punctuation(text, kept):
    assert response_text(text) == kept
    assert response_text(text, strip_punctuation=False) == text.strip()
