"""Every hyperparameter does in a run what config/README.md says of it."""

import math

import pytest
import torch
from pydantic import ValidationError
from tiny import save_tiny_model
from tiny_trainer import TOKENIZER, metrics, questions, same, table, trainer, weights

from elkflow.common.errors import UserError
from elkflow.config.model import ModelSettings
from elkflow.config.ppo import PPOSettings
from elkflow.models.load import load_model
from elkflow.ppo import schedule
from elkflow.ppo.merge_lora import merge
from elkflow.ppo.policy import Policy
from elkflow.ppo.rollout import generate
from elkflow.ppo.session import Session
from elkflow.ppo.train_ppo import save_policy
from elkflow.ppo.trainer import Trainer


def constant(prompts, responses):
    return torch.zeros(len(responses))


def watched(made):
    """The advantages and returns that reach the update of one step."""
    seen, update = {}, made.update

    def look(rollout, minibatches, advantages, returns):
        seen.update(batch=rollout, advantages=advantages, returns=returns)
        return update(rollout, minibatches, advantages, returns)

    made.update = look
    made.step()
    return seen


# amounts and schedules


def test_epochs_become_steps_and_none_at_all_is_an_error():
    assert schedule.total_steps(PPOSettings(steps=7), 100) == 7
    assert schedule.total_steps(PPOSettings(epochs=2, batch_size=8), 30) == 7
    with pytest.raises(UserError, match=r"ppo\.epochs: 0\.25 of 30 prompts is less than a batch of 8"):
        schedule.total_steps(PPOSettings(epochs=0.25, batch_size=8), 30)
    for none in (0, -1):
        with pytest.raises(ValidationError, match="greater than 0"):
            PPOSettings(epochs=none)
        with pytest.raises(ValidationError, match="greater than 0"):
            PPOSettings(steps=none)


def test_every_pass_takes_every_prompt_once_in_another_order():
    taken = [row for step in range(6) for row in schedule.batch_rows(10, 5, step, seed=3)]
    passes = [taken[at : at + 10] for at in (0, 10, 20)]
    assert all(sorted(one) == list(range(10)) for one in passes)
    assert len({tuple(one) for one in passes}) == 3
    assert schedule.batch_rows(10, 5, 0, seed=4) != taken[:5]
    assert sorted(schedule.batch_rows(4, 6, 0, seed=0))[:4] != [0, 0, 1, 1]  # a batch larger than a pass goes round


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("constant", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ("linear", [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.25, 0.5, 0.75, 1, 1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4]),
    ],
)
def test_the_learning_rate_warms_up_and_falls(tmp_path, name, rates):
    settings = {"warmup": 4, "schedule": name, "steps": 8}
    assert [schedule.lr_factor(step, 8, PPOSettings(**settings)) for step in range(8)] == pytest.approx(rates)
    made = trainer(tmp_path, learning_rate=1e-3, **settings)
    made.train()
    assert [row["learning_rate"] for row in metrics(tmp_path)[1:]] == pytest.approx([1e-3 * rate for rate in rates])
    assert made.session.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * rates[-1])


def test_weight_decay_shrinks_what_nothing_else_moves(tmp_path):
    still = {"value_coefficient": 0, "whiten_advantages": False, "kl": {"coefficient": 0}, "ppo_epochs": 1}
    made = trainer(tmp_path, reward=constant, weight_decay=0.5, learning_rate=0.1, **still)
    before = weights(made)
    made.step()
    same(weights(made), {name: value * 0.95 for name, value in before.items()}, tolerance=1e-7)


# rewards and advantages


def test_the_baseline_comes_off_every_reward(tmp_path):
    for name, baseline in (("none", 0.0), ("some", 0.75)):
        trainer(tmp_path / name, reward_baseline=baseline, steps=1).train()
    none, some = (metrics(tmp_path / name)[1] for name in ("none", "some"))
    assert none["return"] == pytest.approx(none["reward"])  # no value, no KL yet
    assert some["reward"] == none["reward"] and some["return"] == pytest.approx(none["reward"] - 0.75)


def test_advantages_are_whitened_unless_told_otherwise(tmp_path):
    white = watched(trainer(tmp_path / "white"))["advantages"]
    assert white.mean() == pytest.approx(0, abs=1e-6) and white.std() == pytest.approx(1, abs=1e-4)
    plain = watched(trainer(tmp_path / "plain", whiten_advantages=False))
    assert torch.equal(plain["advantages"], plain["returns"])  # values are 0 at first
    assert plain["advantages"][:, 0].tolist() == pytest.approx(plain["batch"].scores.tolist())


def test_whitened_rewards_keep_their_mean(tmp_path):
    plain = watched(trainer(tmp_path / "plain", whiten_advantages=False))["returns"]
    white = watched(trainer(tmp_path / "white", whiten_advantages=False, whiten_rewards=True))["returns"]
    assert white.std() == pytest.approx(1, abs=1e-4) and plain.std() < 0.9
    assert white.mean() == pytest.approx(plain.mean().item(), abs=1e-6)


def test_the_coefficient_follows_its_control(tmp_path):
    kl = {"coefficient": 0.4, "target": 0.01, "horizon": 20, "final": 0.1}
    found = {}
    for control in ("fixed", "adaptive", "linear"):
        trainer(tmp_path / control, kl=kl | {"control": control}, steps=4).train()
        found[control] = metrics(tmp_path / control)[1:]
    coefficients = {control: [row["kl_coefficient"] for row in rows] for control, rows in found.items()}
    assert coefficients["fixed"] == [0.4] * 4
    assert coefficients["linear"] == pytest.approx([0.4, 0.325, 0.25, 0.175])  # 0.1 after the last step
    for now, after in zip(found["adaptive"], found["adaptive"][1:], strict=False):
        error = min(max(now["kl_k1"] / 0.01 - 1, -0.2), 0.2)
        assert after["kl_coefficient"] == pytest.approx(now["kl_coefficient"] * (1 + error * 8 / 20))
    assert len(set(coefficients["adaptive"])) == 4


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_penalty_is_the_estimate_that_was_chosen(tmp_path, estimator):
    from elkflow.ppo import objective

    made = trainer(tmp_path, reward=constant, kl={"coefficient": 0.5, "estimator": estimator}, whiten_advantages=False)
    with torch.no_grad():
        for name, parameter in made.session.policy.trained(value_head=False):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    seen = watched(made)
    expected = -0.5 * objective.kl(seen["batch"].logprobs, seen["batch"].reference, estimator)
    torch.testing.assert_close(seen["returns"], expected)
    assert expected.abs().max() > 1e-3


# updates


def test_epochs_end_early_once_the_policy_has_moved_too_far(tmp_path):
    for name, target, updates in (("at once", 1e-9, 1), ("never", 1e9, 4), ("unset", None, 4)):
        trainer(tmp_path / name, target_kl=target, ppo_epochs=4, steps=1).train()
        assert metrics(tmp_path / name)[1]["updates"] == updates


def test_an_entropy_bonus_keeps_the_policy_open(tmp_path):
    found = {}
    for name, coefficient in (("none", 0.0), ("some", 1.0)):
        made = trainer(tmp_path / name, reward=constant, entropy_coefficient=coefficient, train="full", steps=8)
        with torch.no_grad():  # a policy with preferences
            made.session.policy.base.get_output_embeddings().weight.mul_(20)
        made.train()
        found[name] = [row["entropy"] for row in metrics(tmp_path / name)[1:]]
    assert found["some"][0] == pytest.approx(found["none"][0])
    assert found["some"][-1] > found["some"][0] + 0.1 and found["some"][-1] > found["none"][-1] + 0.1


def test_recomputed_activations_change_nothing(tmp_path):
    for settings in ({}, {"layers": 2}, {"max_new_tokens": 3}):
        runs = []
        for name, again in (("kept", False), ("again", True)):
            made = trainer(tmp_path / f"{name}{settings}", gradient_checkpointing=again, steps=2, **settings)
            made.train()
            runs.append(weights(made))
        same(*runs, tolerance=1e-6)


@pytest.mark.parametrize("setting", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-3}], ids=str)
@pytest.mark.parametrize("length", [1, 3])
def test_sampling_can_be_narrowed_to_the_likeliest_token(tmp_path, setting, length):
    made = trainer(tmp_path, max_new_tokens=length, **setting)
    batch = made.roll_out(0)
    session = made.session
    prompts = [session.questions.tokens[row] for row in batch.rows]
    greedy = generate(session.policy, prompts, None, session.sampling, session.ends)
    assert batch.responses == session.texts(greedy, batch.mask)
    assert trainer(tmp_path / "free", max_new_tokens=length).roll_out(0).responses != batch.responses


def test_adapters_are_shaped_as_told():
    short, listed, everything = ({"targets": which} for which in ("q,v", ["k_proj", "down_proj"], "all-linear"))
    assert PPOSettings(steps=1, lora=short).lora.targets == ["q_proj", "v_proj"]
    assert PPOSettings(steps=1, lora=listed).lora.targets == ["k_proj", "down_proj"]
    from tiny import tiny_llama

    for lora, modules in ((short, 2), (listed, 2), (everything, 7)):
        chosen = PPOSettings(steps=1, lora=lora | {"rank": 3, "alpha": 12, "dropout": 0.25})
        policy = Policy(tiny_llama(40), chosen)
        adapters = [p for name, p in policy.trained() if "lora_A" in name]
        assert len(adapters) == 4 * modules and all(p.shape[0] == 3 for p in adapters)
        made = policy.model.peft_config["default"]
        assert (made.lora_alpha, made.lora_dropout) == (12, 0.25)


# collapse


def collapsing(folder, at, **settings):
    """A run whose watch calls out at these steps, whatever it sees."""
    made = trainer(folder, steps=6, sentinel={"action": settings.pop("action", "stop")}, **settings)
    calls = iter(range(1, 100))
    made.session.collapse_watch.judge = lambda metrics: "made up" if next(calls) in at else None
    return made


def test_after_a_collapse_the_last_good_weights_are_back(tmp_path):
    whole = trainer(tmp_path / "whole", steps=6, keep="last", stopping=lambda: len(metrics(tmp_path / "whole")) > 3)
    whole.train()
    made = collapsing(tmp_path / "cut", {4}, keep="last")
    done = made.train()
    assert (done.outcome, done.step, done.kept) == ("collapsed", 4, 3)
    assert done.reason == "collapsed at step 4: made up"
    same(weights(made), weights(whole))


def test_or_the_rate_is_lowered_once(tmp_path):
    done = collapsing(tmp_path / "once", {4}, action="lower_rate").train()
    rows = metrics(tmp_path / "once")
    assert done.outcome == "finished" and [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5, 6]
    assert [row["learning_rate"] for row in rows[1:]] == pytest.approx([0.02] * 3 + [0.002] * 3)
    assert done.reason == "learning rate lowered after a collapse at step 4: made up"
    done = collapsing(tmp_path / "twice", {4, 6}, action="lower_rate").train()
    assert done.outcome == "collapsed" and done.step == 5


# quantised bases


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
