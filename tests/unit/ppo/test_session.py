"""A run in a session: its records, checkpoints, going on from them, and what happens after a collapse."""

import json

import pytest
from tiny_trainer import metrics, same, trainer, weights

from elkflow.common.errors import UserError
from elkflow.ppo import checkpoints


def test_every_figure_is_there_and_finite(tmp_path):
    trainer(tmp_path).train()
    wanted = {"reward", "valid", "yes_rate", "answer_entropy", "entropy", "kl_k1", "kl_k3", "clip_fraction"}
    wanted |= {"value_loss", "policy_loss", "gradient_norm", "gold_accuracy", "learning_rate"}
    rows = metrics(tmp_path)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    for row in rows[1:]:
        assert all(isinstance(row[name], float) for name in wanted)
        assert row["kl_k3"] >= 0
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert {row["step"] for row in samples} == {1, 2, 4}
    assert all(row["prompt"] and "response" in row for row in samples)


@pytest.mark.parametrize("setting", [{}, {"lora": {"dropout": 0.2}}, {"max_new_tokens": 3}, {"minibatch_size": 4}])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(tmp_path, setting):
    setting = setting | {"kl": {"control": "adaptive", "horizon": 100}, "schedule": "cosine"}
    whole = trainer(tmp_path / "whole", **setting)
    whole.train()
    for stop_after in (1, 3):
        folder = tmp_path / str(stop_after)
        first = trainer(folder, stopping=lambda folder=folder, n=stop_after: len(metrics(folder)) > n, **setting)
        assert first.train().outcome == "interrupted"
        with (folder / "metrics.jsonl").open("a") as handle:
            handle.write('{"step": 9, "reward"')  # a line half-written
        second = trainer(folder, **setting)
        assert second.session.progress.step == stop_after
        assert second.train() == whole.session.progress
        same(weights(whole), weights(second))
        assert metrics(folder) == metrics(tmp_path / "whole")
        assert (folder / "samples.jsonl").read_bytes() == (tmp_path / "whole" / "samples.jsonl").read_bytes()


def test_checkpoints_of_another_run_are_not_used(tmp_path):
    trainer(tmp_path).train()
    assert trainer(tmp_path, fingerprint="another").session.progress.step == 0
    assert [folder.name for folder in tmp_path.glob("step-*")] == ["step-000000"]


def test_the_last_checkpoints_and_the_best_are_kept(tmp_path):
    made = trainer(tmp_path, steps=6)
    done = made.train()
    found = {int(folder.name[5:]) for folder in tmp_path.glob("step-*")}
    assert found == {5, 6, done.kept, done.healthy}
    same(
        {f"policy.{name}": value for name, value in weights(made).items()},
        {k: v for k, v in checkpoints.load(checkpoints.folder_of(tmp_path, done.kept))[0].items() if "policy." in k},
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 6, "accumulation": 4}, "accumulation"),
        ({"steps": None, "epochs": 0.1}, "less than a batch"),
        ({"lora": {"targets": ["nothing_proj"]}}, "no 'nothing_proj'"),
        ({"layers": 9}, "the policy has 4 blocks"),
    ],
)
def test_amounts_that_do_not_fit_are_named(tmp_path, settings, message):
    with pytest.raises((UserError, ValueError), match=message):
        trainer(tmp_path, **settings)


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
