"""RLOO and GRPO of TRL leave the same artefacts as our PPO."""

import pytest
import torch
from tiny_trainer import metrics, same, trainer, weights

from elkflow.common.errors import UserError
from elkflow.ppo.trl_trainers import train_grouped


def lengths(prompts, responses):
    """A reward that differs between the answers to one prompt, even of a model that says anything."""
    return torch.tensor([float(len(text) % 3) for text in responses])


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
@pytest.mark.parametrize("minibatch", [8, 4])
def test_they_run_to_the_end_and_leave_the_same_records(tmp_path, algorithm, minibatch):
    settings = {"generations": 4, "minibatch_size": minibatch, "ppo_epochs": 2, "steps": 3, "keep": "last"}
    run = trainer(tmp_path, reward=lengths, sentinel=None, **settings)
    before = weights(run)
    done = train_grouped(run.session, algorithm)
    assert (done.outcome, done.step, done.kept) == ("finished", 3, 3)
    rows = metrics(tmp_path)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    ours = {"reward", "valid", "yes_rate", "entropy", "kl_k3", "policy_loss", "gradient_norm", "gold_accuracy"}
    assert all(ours <= row.keys() for row in rows[1:])
    assert rows[1]["updates"] == 2 * 8 // minibatch
    assert rows[-1]["held_out_reward"] is not None and (tmp_path / "samples.jsonl").stat().st_size
    assert any((before[name] != value).any() for name, value in weights(run).items() if "lora" in name)


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(tmp_path, algorithm):
    """Dropout, several updates a rollout and a schedule: all that a checkpoint has to bring back."""
    settings = {"generations": 4, "minibatch_size": 4, "steps": 5, "reward": lengths, "lora": {"dropout": 0.1}}
    settings |= {"sentinel": None, "schedule": "linear", "warmup": 2, "max_new_tokens": 2}
    whole = trainer(tmp_path / "whole", **settings)
    finished = train_grouped(whole.session, algorithm)
    rates = [row["learning_rate"] for row in metrics(tmp_path / "whole")[1:]]
    assert rates == pytest.approx([0.01, 0.02, 0.02, 0.02 * 2 / 3, 0.02 / 3])
    folder = tmp_path / "cut"
    for reached in (1, 3):
        cut = trainer(folder, stopping=lambda reached=reached: len(metrics(folder)) > reached, **settings)
        assert train_grouped(cut.session, algorithm).outcome == "interrupted"
        assert cut.session.progress.step == reached
    last = trainer(folder, **settings)
    assert last.session.progress.step == 3
    assert train_grouped(last.session, algorithm) == finished
    same(weights(whole), weights(last))
    assert metrics(folder) == metrics(tmp_path / "whole")
    assert (folder / "samples.jsonl").read_bytes() == (tmp_path / "whole" / "samples.jsonl").read_bytes()


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
        train_grouped(trainer(tmp_path, **settings).session, "rloo")
