"""One model is policy, reference and critic; only what the settings say is trained."""

import pytest
import torch
from tiny import moved, save_tiny_model, tiny_llama
from tiny_trainer import TOKENIZER, questions, same, table, weights

from elkflow.common.errors import UserError
from elkflow.config.model import ModelSettings
from elkflow.config.ppo import PPOSettings
from elkflow.models.load import load_model
from elkflow.ppo.merge_lora import merge
from elkflow.ppo.policy import Policy
from elkflow.ppo.session import Session
from elkflow.ppo.train_ppo import save_policy
from elkflow.ppo.trainer import Trainer

ROWS = [[7, 8, 9, 12], [7, 8, 9, 10, 4, 20]]  # what they begin with is shared in a prefix tree
LAST = torch.tensor([[3], [5]])


def whole(model, rows):
    with torch.no_grad():
        return torch.stack([model(input_ids=torch.tensor([row])).logits[0, -1:].float() for row in rows])


@pytest.mark.parametrize(
    "settings", [{"train": "full"}, {"train": "layers", "layers": 2}, {"train": "lora"}, {"layers": 1}]
)
def test_the_reference_is_the_model_before_training(settings):
    model = tiny_llama(60)
    before = whole(model, ROWS)
    policy = moved(Policy(model, PPOSettings(steps=1, **settings)))
    frozen = policy.run_frozen_blocks(ROWS)
    changed = policy(frozen, LAST)[0]
    with policy.as_reference():
        torch.testing.assert_close(policy(policy.run_frozen_blocks(ROWS), LAST)[0], before, atol=2e-5, rtol=0)
    assert torch.equal(policy(frozen, LAST)[0], changed)


def test_only_the_top_blocks_are_trained():
    policy = Policy(tiny_llama(60), PPOSettings(steps=1, layers=1))
    names = [name for name, _ in policy.trained()]
    assert names and all("layers.3." in name or "value_head" in name for name in names)
    policy = Policy(tiny_llama(60), PPOSettings(steps=1, train="layers", layers=2))
    assert {name.split(".")[2] for name, _ in policy.trained() if "layers." in name} == {"2", "3"}


@pytest.mark.parametrize("settings", [{}, {"layers": 2}, {"train": "layers", "layers": 2}, {"train": "full"}])
def test_gradients_are_those_of_the_whole_model(settings):
    policy = moved(Policy(tiny_llama(60), PPOSettings(steps=1, **settings)))
    policy(policy.run_frozen_blocks(ROWS), LAST)[0].square().sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in policy.trained(value_head=False)}
    policy.zero_grad()
    sum(policy.model(input_ids=torch.tensor([row])).logits[0, -1].float().square().sum() for row in ROWS).backward()
    for name, parameter in policy.trained(value_head=False):
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-4, rtol=1e-4, msg=name)


def test_the_same_seed_gives_the_same_adapter():
    made = [dict(Policy(tiny_llama(60), PPOSettings(steps=1), seed).trained()) for seed in (0, 0, 1)]
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert not all(torch.equal(made[0][name], made[2][name]) for name in made[0])


def test_half_precision_keeps_what_is_trained_in_full():
    for settings in ({}, {"train": "layers", "layers": 2}, {"train": "full"}):
        policy = Policy(tiny_llama(60).bfloat16(), PPOSettings(steps=1, **settings))
        assert all(parameter.dtype == torch.float32 for _, parameter in policy.trained())
        logits, _ = policy(policy.run_frozen_blocks(ROWS), LAST)
        logits.sum().backward()
        assert logits.dtype == torch.float32 and torch.isfinite(logits).all()


def test_unknown_targets_are_named():
    with pytest.raises(UserError, match="no 'c_attn'; it has down_proj, gate_proj"):
        Policy(tiny_llama(60), PPOSettings(steps=1, lora={"targets": ["c_attn"]}))


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_an_adapter_on_a_quantised_base(tmp_path, bits):
    """bitsandbytes' own layers, on whatever device there is: the adapter alone moves, and merges into the full base."""
    import pandas as pd

    from elkflow.common.files import write_table

    checkpoint = save_tiny_model(tmp_path / "model", hidden=64)
    settings = PPOSettings(steps=2, batch_size=8, evaluate_rows=8, evaluate_every=2, learning_rate=0.02)
    policy = Policy(load_model(checkpoint, dtype="float32", quantization=bits), settings)
    assert policy.base.is_quantized
    kinds = {type(module.base_layer).__name__ for n, module in policy.model.named_modules() if n.endswith("q_proj")}
    assert kinds == {{"8bit": "Linear8bitLt", "4bit": "Linear4bit"}[bits]}
    frozen = {n: p.detach().clone() for n, p in policy.base.named_parameters() if not p.requires_grad}
    asked = questions()
    rewards = table(asked)
    session = Session(policy, TOKENIZER, asked, rewards, asked, rewards, settings, 0, tmp_path / "run", "one")
    session.start()
    made = Trainer(session)
    before = weights(made)
    assert made.train().outcome == "finished"
    changed = weights(made)
    assert all(not torch.equal(changed[name], before[name]) for name in before if "lora_B" in name)
    same(
        dict(policy.base.named_parameters()),
        frozen | {n: p for n, p in policy.base.named_parameters() if n not in frozen},
    )

    save_policy(policy, TOKENIZER, tmp_path / "adapter")
    write_table(pd.DataFrame({"prompt": ["paris is", "rome the no"]}), tmp_path / "val.parquet")
    chosen = ModelSettings(path="x", dtype="float32", quantization=bits)
    facts = merge(checkpoint, tmp_path / "adapter", tmp_path / "val.parquet", tmp_path / "merged", chosen)
    assert facts["logit_difference"] <= 1e-4
    base, merged = (load_model(folder, dtype="float32").state_dict() for folder in (checkpoint, tmp_path / "merged"))
    key = "model.layers.1.self_attn.q_proj"
    a, b = (next(v for n, v in changed.items() if f"layers.1.self_attn.q_proj.lora_{x}" in n) for x in "AB")
    torch.testing.assert_close(merged[f"{key}.weight"] - base[f"{key}.weight"], 2.0 * b @ a, atol=1e-6, rtol=0)


def test_weights_that_are_quantised_cannot_be_trained_themselves(tmp_path):
    checkpoint = save_tiny_model(tmp_path / "model", hidden=64)
    model = load_model(checkpoint, dtype="float32", quantization="8bit")
    with pytest.raises(UserError, match=r"ppo\.train: 'full' needs weights that are not quantised; use lora"):
        Policy(model, PPOSettings(steps=1, train="full"))
