"""RLOO and GRPO of TRL leave the same artefacts as our PPO."""

import pytest
import torch
from test_trainer import metrics, trainer, weights

from elkflow.errors import UserError
from elkflow.grouped import train_grouped


def lengths(prompts, responses):
    """A reward that differs between the answers to one prompt, even of a model that says anything."""
    return torch.tensor([float(len(text) % 3) for text in responses])


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
@pytest.mark.parametrize("minibatch", [8, 4])
def test_they_run_to_the_end_and_leave_the_same_records(tmp_path, algorithm, minibatch):
    run = trainer(tmp_path, generations=4, minibatch_size=minibatch, ppo_epochs=2, steps=3, keep="last", reward=lengths)
    before = weights(run)
    done = train_grouped(run, algorithm)
    assert (done.outcome, done.step, done.kept) == ("finished", 3, 3)
    rows = metrics(tmp_path)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    ours = {"reward", "valid", "yes_rate", "entropy", "kl_k3", "policy_loss", "gradient_norm", "gold_accuracy"}
    assert all(ours <= row.keys() for row in rows[1:])
    assert rows[1]["updates"] == 2 * 8 // minibatch
    assert rows[-1]["held_out_reward"] is not None and (tmp_path / "samples.jsonl").stat().st_size
    assert any((before[name] != value).any() for name, value in weights(run).items() if "lora" in name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"generations": 3}, "ppo.generations: 3 does not divide batch_size 8"),
        ({"train": "full"}, "need lora"),
        ({"kl": {"control": "adaptive"}}, "only fixed"),
    ],
)
def test_what_they_cannot_do_is_said(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        train_grouped(trainer(tmp_path, **settings), "rloo")
