"""A whole step of ours against one of TRL 0.11.4's PPOTrainer, whose values bench/ppo_parity.py stored in parity.json.

Same model, batch and hyperparameters. Sampling is replaced by the stored responses and minibatches are whole batches,
since the two draw their random numbers differently.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from elkflow.config.ppo import PPOSettings
from elkflow.ppo.policy import Policy
from elkflow.ppo.questions import Questions
from elkflow.ppo.session import Session
from elkflow.ppo.trainer import Trainer

sys.path.append(str(Path(__file__).resolve().parents[3] / "bench"))
import tiny_model

STORED = json.loads(Path(__file__).with_name("parity.json").read_text())["cases"]


def settings(case):
    return PPOSettings(
        steps=1,
        batch_size=tiny_model.BATCH,
        learning_rate=tiny_model.RATE,
        ppo_epochs=case["ppo_epochs"],
        clip=tiny_model.CLIP,
        value_clip=tiny_model.VALUE_CLIP,
        value_coefficient=case["vf_coef"],
        gamma=case["gamma"],
        gae_lambda=case["lam"],
        whiten_rewards=case.get("whiten", False),
        max_gradient_norm=case["max_grad_norm"],
        max_new_tokens=3,
        evaluate_rows=1,
        sentinel=None,
        kl={
            "coefficient": tiny_model.KL["init_kl_coef"],
            "control": "adaptive" if case["adaptive"] else "fixed",
            "target": tiny_model.KL["target"],
            "horizon": tiny_model.KL["horizon"],
        },
        lora={"rank": tiny_model.LORA["r"], "alpha": tiny_model.LORA["lora_alpha"]},
    )


def close(found, stored):
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(stored), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", tiny_model.CASES)
def test_a_step_is_that_of_trl(tmp_path, monkeypatch, name):
    case, stored = tiny_model.CASES[name], STORED[name]
    prompts, responses, scores = tiny_model.batch(ragged=not case.get("whiten"))
    texts = [str(index) for index in range(tiny_model.BATCH)]
    policy = Policy(LlamaForCausalLM(LlamaConfig(**tiny_model.CONFIG)).eval(), settings(case))
    tiny_model.fill(policy)
    asked = Questions(texts, texts, [["No", "Yes"]] * len(texts), [0] * len(texts), prompts, texts)

    def generate(_, rows, *rest):
        given = [responses[prompts.index(list(row))] for row in rows]
        return torch.tensor([row + [0] * (3 - len(row)) for row in given])

    def rewards(given, _):
        return torch.tensor([scores[int(text)] for text in given])

    monkeypatch.setattr("elkflow.ppo.rollout.generate", generate)
    session = Session(policy, tiny_tokenizer(), asked, rewards, asked, rewards, settings(case), 0, tmp_path, "one")
    session.ends = {tiny_model.CONFIG["eos_token_id"]}
    monkeypatch.setattr("elkflow.ppo.session.generate", generate)
    session.start()
    made, seen = Trainer(session), {}
    update = made.update

    def watched(rollout, minibatches, advantages, returns):
        metrics = update(rollout, minibatches, advantages, returns)
        seen.update(rollout=rollout, advantages=advantages, returns=returns, metrics=metrics)
        return metrics

    monkeypatch.setattr(made, "update", watched)
    made.step()

    rows, mask = seen["rollout"].rows, seen["rollout"].mask.bool()
    for at, row in enumerate(rows):
        close(seen["rollout"].values[at][mask[at]], stored["values"][row])
        close(seen["advantages"][at][mask[at]], stored["advantages"][row])
        close(seen["returns"][at][mask[at]], stored["returns"][row])
    for name in ("policy_loss", "value_loss"):
        close(seen["metrics"][name], sum(stored[name]) / len(stored[name]))
    assert session.kl_controller.coefficient == pytest.approx(stored["kl_coefficient"], abs=1e-4)
    assert (stored["kl_coefficient"] != 0.2) == case["adaptive"]
    found = {tiny_model.plain(key): value.flatten() for key, value in policy.trained()}
    assert found.keys() == stored["parameters"].keys() and len(found) == 10
    for key, value in found.items():
        close(value, stored["parameters"][key])
        assert (value - 0.3 * tiny_model.noise(key, tuple(value.shape))).abs().max() > 1e-3, "no step was made"
