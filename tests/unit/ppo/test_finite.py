"""NaN or infinity in rewards, log-probabilities, values and gradients is reported; training keeps what was good."""

import re
from contextlib import contextmanager

import pytest
import torch
from tiny_trainer import metrics, same, trainer, weights

from elkflow.ppo.finite import check_rows, listed

NAN, INF = float("nan"), float("inf")


def test_the_tensor_and_its_rows_are_named():
    fine = torch.zeros(5, 2)
    bad = fine.clone()
    bad[[0, 2, 3, 4], 1] = INF
    names = ["a", "b", "c", "d", "e"]
    check_rows({"values": fine, "rewards": fine[:, 0]}, names)
    with pytest.raises(FloatingPointError, match=r"^values of a, c, d and 1 more: infinity$"):
        check_rows({"rewards": fine, "values": bad}, names)
    with pytest.raises(FloatingPointError, match=r"^rewards of b: NaN$"):
        check_rows({"rewards": torch.tensor([0, NAN, 0, 0, 0])}, names)
    assert listed(names[:3]) == "a, b, c"


def reward(made, number):
    """The next time, the fourth response is worth `number`."""
    usual = made.session.rewards

    def once(prompts, responses):
        made.session.rewards = usual
        return usual(prompts, responses).index_fill(0, torch.tensor([3]), number)

    made.session.rewards = once


def gradient(made, number):
    """The next time, a parameter's gradient is `number`."""
    handle = made.session.trained[1][1].register_hook(
        lambda found: (handle.remove(), torch.full_like(found, number))[1]
    )


def weight(made, index):
    with torch.no_grad():
        made.session.trained[index][1].fill_(NAN)


def reference(made, number):
    """The frozen model's last norm is damaged while the reference reads."""
    usual, norm = made.session.policy.as_reference, made.session.policy.trunk.norm.weight

    @contextmanager
    def once():
        made.session.policy.as_reference = usual
        with usual():
            before = norm.detach().clone()
            norm.detach().fill_(number)
            yield
            norm.detach().copy_(before)

    made.session.policy.as_reference = once


EVERY = r"q\d+, q\d+, q\d+ and 5 more"
FAULTS = {
    "a reward": (reward, NAN, r"rewards of q\d+: NaN"),
    "an infinite reward": (reward, -INF, r"rewards of q\d+: infinity"),
    "the adapter": (weight, 1, rf"log-probabilities of {EVERY}: NaN"),
    "the value head": (weight, -1, rf"values of {EVERY}: NaN"),
    "the reference": (reference, NAN, rf"reference log-probabilities of {EVERY}: NaN"),
    "a gradient": (gradient, NAN, rf"gradient of \S*lora_B\S* from {EVERY}: NaN"),
    "an infinite gradient": (gradient, INF, rf"gradient of \S*lora_B\S* from {EVERY}: infinity"),
    "an overflowing norm": (gradient, 1e30, rf"gradients from {EVERY}: their norm overflows"),
}
SETTINGS = {"evaluate_every": 1, "keep": "last", "kl": {"control": "adaptive", "horizon": 50}}


@pytest.mark.parametrize("watched", [{}, {"sentinel": None}], ids=["watched", "unwatched"])
@pytest.mark.parametrize("name", FAULTS)
def test_training_stops_with_the_last_good_weights(tmp_path, name, watched):
    spoil, how, message = FAULTS[name]
    made = trainer(tmp_path, **SETTINGS, **watched)
    made.step()
    good = weights(made)
    spoil(made, how)
    done = made.train()
    assert (done.outcome, done.step, done.kept) == ("collapsed", 2, 1)
    assert re.fullmatch(f"collapsed at step 2: {message}", done.reason), done.reason
    same(weights(made), good)
    assert [row["step"] for row in metrics(tmp_path)] == [0, 1, 2]


@pytest.mark.parametrize("name", FAULTS)
def test_training_goes_on_from_the_last_good_state(tmp_path, name):
    spoil, how, message = FAULTS[name]
    made = trainer(tmp_path, sentinel={"action": "lower_rate"}, **SETTINGS)
    made.step()
    spoil(made, how)
    done = made.train()
    assert (done.outcome, done.step, done.rate) == ("finished", 4, 0.1)
    assert re.fullmatch(f"learning rate lowered after a collapse at step 2: {message}", done.reason), done.reason
    assert all(parameter.isfinite().all() for parameter in weights(made).values())
    assert [row["step"] for row in metrics(tmp_path)] == [0, 1, 2, 3, 4]
