"""Every hyperparameter does in a run what config/README.md says of it."""

import math

import pytest
import torch
from tiny_trainer import metrics, same, trainer, weights

from elkflow.config.ppo import PPOSettings
from elkflow.ppo import schedule
from elkflow.ppo.policy import Policy
from elkflow.ppo.rollout import generate


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


# quantised bases
