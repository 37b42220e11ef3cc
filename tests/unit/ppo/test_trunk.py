"""Prefix trees and frozen blocks that run once change no logits and no gradients, in any family of models."""

import pytest
import torch
from tiny import moved, tiny_llama
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, GPTNeoXConfig, OPTConfig, Qwen2Config

from elkflow.config.ppo import PPOSettings
from elkflow.ppo.policy import Policy

ROWS = [[7, 8, 9, 12], [7, 8, 9, 10, 4, 20]]  # what they begin with is shared in a prefix tree
LAST = torch.tensor([[3], [5]])


def whole(model, rows):
    with torch.no_grad():
        return torch.stack([model(input_ids=torch.tensor([row])).logits[0, -1:].float() for row in rows])


SHAPE = {"vocab_size": 60, "num_hidden_layers": 3, "num_attention_heads": 2, "hidden_size": 32}
WIDE = SHAPE | {"intermediate_size": 64, "num_key_value_heads": 1, "head_dim": 16}
CONFIGS = {
    "gpt2": (GPT2Config(vocab_size=60, n_layer=3, n_head=2, n_embd=32), ["c_attn"]),
    "gemma2": (Gemma2Config(**WIDE, sliding_window=3), ["q_proj", "v_proj"]),
    "qwen2": (Qwen2Config(**WIDE), "all-linear"),
    "neox": (GPTNeoXConfig(**SHAPE, intermediate_size=64), ["query_key_value"]),
    "opt": (OPTConfig(**SHAPE, ffn_dim=64, word_embed_proj_dim=32), ["q_proj"]),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("layers", ["all", 2])
def test_many_families_give_their_own_logits(name, layers):
    config, targets = CONFIGS[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    before = whole(model, ROWS)
    policy = moved(Policy(model, PPOSettings(steps=1, layers=layers, lora={"targets": targets})))
    frozen = policy.run_frozen_blocks(ROWS)
    logits, values = policy(frozen, LAST)
    assert policy.trunk.split and policy.trunk.longest == (
        0 if name == "gemma2" else 256
    )  # its windows are 3 tokens wide
    torch.testing.assert_close(logits, whole(policy.model, ROWS), atol=2e-5, rtol=0)
    assert not torch.allclose(logits, before, atol=1e-4)
    with policy.as_reference():
        torch.testing.assert_close(policy(frozen, LAST)[0], before, atol=2e-5, rtol=0)
    assert values.shape == (2, 1) and values.dtype == torch.float32


@pytest.mark.parametrize("longest", [0, 256])
def test_a_place_that_is_read_twice_counts_twice_in_gradients(longest):
    policy = moved(Policy(tiny_llama(60), PPOSettings(steps=1, lora={"targets": "all-linear"})))
    policy.trunk.longest = longest
    rows = [ROWS[0], ROWS[0], ROWS[1]]
    places = torch.tensor([[len(row) - 1] * 2 for row in rows])
    policy(policy.run_frozen_blocks(rows), places)[0].square().sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in policy.trained(value_head=False)}
    policy.zero_grad()
    alone = [policy.model(input_ids=torch.tensor([row])).logits[0, -1].float().square().sum() for row in rows]
    (2 * sum(alone)).backward()
    for name, parameter in policy.trained(value_head=False):
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-4, rtol=1e-4, msg=name)


def test_attention_with_capped_scores_stays_out_of_prefix_trees():
    config = Gemma2Config(**WIDE, attn_logit_softcapping=0.1)
    policy = Policy(AutoModelForCausalLM.from_config(config).eval(), PPOSettings(steps=1))
    assert policy.trunk.split and not policy.trunk.longest


@pytest.mark.parametrize("settings", [{"layers": 2}, {"train": "full"}, {"gradient_checkpointing": True}])
def test_a_prefix_tree_has_the_gradients_of_padded_lines(settings):
    rows = [[*range(5, 45), *end] for end in ([1, 2, 3], [1, 2, 4, 5], [6], [])] + [[9, 8]]
    last = torch.tensor([[len(row) - 1, 1] for row in rows])
    found = []
    for longest in (256, 0):
        policy = moved(Policy(tiny_llama(60), PPOSettings(steps=1, **settings)))
        policy.trunk.longest = longest
        frozen = policy.run_frozen_blocks(rows)
        assert frozen.layout.ids.shape == ((1, 48) if longest else (5, 44))
        logits, values = policy(frozen, last)
        (logits.square().mean() + values.sum()).backward()
        found.append({name: parameter.grad for name, parameter in policy.trained()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], atol=1e-6, rtol=1e-4, msg=name)


def test_the_same_batch_is_read_once_while_it_is_remembered():
    policy = Policy(tiny_llama(60), PPOSettings(steps=1, layers=2))
    trunk, other = policy.trunk, [ROWS[1], ROWS[0]]
    with trunk.remembering({}):
        first = trunk.run_frozen_blocks(ROWS)
        assert trunk.run_frozen_blocks([tuple(row) for row in ROWS]) is first
        assert trunk.run_frozen_blocks(other) is not first
    again = trunk.run_frozen_blocks(ROWS)
    assert again is not first and torch.equal(again.states, first.states)


def test_prompts_are_read_on_token_by_token():
    policy = moved(Policy(tiny_llama(60), PPOSettings(steps=1)))
    states, prompts = policy.trunk.read_prompts(ROWS)
    following = torch.tensor([[11, 5], [6, 30]])
    with torch.no_grad():
        for t in range(3):
            rows = [[*row, *more[:t]] for row, more in zip(ROWS, following.tolist(), strict=True)]
            torch.testing.assert_close(policy.logits(states), whole(policy.model, rows), atol=2e-5, rtol=0)
            states = policy.trunk.read_next(prompts, following[:, : t + 1]) if t < 2 else states
