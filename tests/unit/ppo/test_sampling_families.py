"""Several tokens are sampled after prompts of different lengths as after each alone, whatever a model caches."""

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from elkflow.config.ppo import PPOSettings
from elkflow.ppo.policy import Policy
from elkflow.ppo.rollout import Sampling, generate

SHAPE = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 256, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
SLIDING = ["sliding_attention", "sliding_attention", "full_attention"]
GEMMA = {**SHAPE, "head_dim": 16, "query_pre_attn_scalar": 16, "layer_types": SLIDING}
FAMILIES = {
    "llama": (lambda: transformers.LlamaConfig(**SHAPE), True),
    "granite": (lambda: transformers.GraniteConfig(**SHAPE, logits_scaling=8.0), True),
    "lfm2": (lambda: transformers.Lfm2Config(**SHAPE, layer_types=["conv", "full_attention", "conv"]), False),
    "mpt": (lambda: transformers.MptConfig(vocab_size=60, d_model=32, n_layers=3, n_heads=2, max_seq_len=256), False),
    "gemma3, windows of 20": (lambda: transformers.Gemma3TextConfig(**GEMMA, sliding_window=20), False),
    "mistral, windows of 20": (lambda: transformers.MistralConfig(**SHAPE, sliding_window=20), False),
    "gpt neo, windows of 20": (lambda: transformers.GPTNeoConfig(
        vocab_size=60, hidden_size=32, num_layers=2, num_heads=2, attention_types=[[["local", "global"], 1]],
        window_size=20, max_position_embeddings=256,
    ), None),
}  # fmt: skip
PROMPTS = [[5, 6, 7, 8, 9], [(11 * i) % 50 + 4 for i in range(14)], [(7 * i) % 50 + 4 for i in range(40)]]


def policy_of(name, **settings):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[name][0]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    linear = {name.split(".")[-1] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    targets = sorted(linear & {"q_proj", "v_proj", "Wqkv", "in_proj"})
    return Policy(model.eval(), PPOSettings(steps=1, lora={"targets": targets}, max_new_tokens=5, **settings))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_continues_as_each_prompt_alone(name):
    policy = policy_of(name)
    policy.check_forward_path(PROMPTS, 5)
    if FAMILIES[name][1] is not None:
        assert policy.trunk.cached == FAMILIES[name][1]
    found = generate(policy, PROMPTS, None, Sampling(max_new_tokens=5), {10**6}).tolist()
    for prompt, continued in zip(PROMPTS, found, strict=True):
        alone = list(prompt)
        for _ in range(5):
            logits = policy.model(input_ids=torch.tensor([alone]), use_cache=False).logits[0, -1]
            alone.append(int(logits.argmax()))
        assert continued == alone[len(prompt) :]


@pytest.mark.parametrize("name", FAMILIES)
def test_log_probabilities_of_a_batch_are_those_of_single_texts(name):
    policy = policy_of(name)
    policy.check_forward_path(PROMPTS, 1)
    last = torch.tensor([[len(prompt) - 1] for prompt in PROMPTS])
    logits, _ = policy(policy.run_frozen_blocks(PROMPTS), last)
    for prompt, row in zip(PROMPTS, logits, strict=True):
        alone = policy.model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0, -1]
        torch.testing.assert_close(row[0], alone, atol=1e-3, rtol=1e-3)
