"""A tiny Llama, its PPO batch and settings, whose numbers follow from their names: the same in every library version.

Imported by bench/ppo_parity.py in the peer's environment and by tests/unit/test_parity.py in ours.
"""

import zlib

import torch
from torch import Tensor, nn

CONFIG = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": True,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
BATCH = 8
RATE = 0.01
CASES = {
    "one step": {"ppo_epochs": 1, "adaptive": True, "vf_coef": 1.0, "gamma": 1.0, "lam": 0.95, "max_grad_norm": 0.5},
    "clipped": {"ppo_epochs": 4, "adaptive": False, "vf_coef": 0.3, "gamma": 0.9, "lam": 0.8, "max_grad_norm": None},
    "white rewards": {
        "ppo_epochs": 2,
        "adaptive": True,
        "vf_coef": 0.1,
        "gamma": 0.95,
        "lam": 1.0,
        "whiten": True,
        "max_grad_norm": None,
    },
}
"""Hyperparameters under TRL's names, but for `adaptive` (KL control) and `whiten` (rewards).

Two defects of TRL's are kept out of the way. It shortens gradients at its first optimiser step only (it keeps the
parameters in an iterator, which is then used up), so `max_grad_norm` stands in the case of one step. And whitened
rewards are not zero behind a response's end, from where they leak into the advantages: that case has equal lengths.
"""
KL = {"init_kl_coef": 0.2, "target": 1.5, "horizon": 50}
CLIP, VALUE_CLIP = 0.1, 0.15


def noise(name: str, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def plain(name: str) -> str:
    """A parameter's name without what wrappers put around it."""
    name = name.replace("base_layer.", "").replace("default.", "").replace("v_head.summary", "value_head")
    return name.split("model.")[-1]


def fill(module: nn.Module) -> None:
    """Give every parameter the numbers that its name stands for."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(0.3 * noise(plain(name), tuple(parameter.shape)) + ("norm" in name))


def batch(ragged: bool) -> tuple[list[list[int]], list[list[int]], list[float]]:
    """Prompts of 3 to 10 tokens, responses of 1 to 3 (the short ones end with the end token), and scores.

    Not ragged: prompts of 6 tokens, responses of 3.
    """
    generator = torch.Generator().manual_seed(5)

    def tokens(count: int) -> list[int]:
        return torch.randint(4, CONFIG["vocab_size"], (count,), generator=generator).tolist()

    prompts = [tokens(3 + index if ragged else 6) for index in range(BATCH)]
    lengths = (3, 1, 2, 3, 2, 1, 3, 3) if ragged else [3] * BATCH
    responses = [[*tokens(length - 1), 3] if length < 3 else tokens(3) for length in lengths]
    return prompts, responses, noise("scores", (BATCH,)).tolist()
