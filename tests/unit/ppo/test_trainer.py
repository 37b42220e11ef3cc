"""The training loop on a tiny model: what it learns, what it must not see, and that it can stop and go on."""

import json
from dataclasses import replace

import pytest
from tiny_trainer import metrics, questions, same, table, trainer, weights

from elkflow.common.errors import UserError
from elkflow.ppo import checkpoints


def test_it_learns_what_is_rewarded(tmp_path):
    made = trainer(tmp_path, train="full", learning_rate=3e-3, steps=40, batch_size=24, evaluate_rows=24)
    done = made.train()
    rows = metrics(tmp_path)
    assert done.outcome == "finished"
    assert rows[0]["held_out_accuracy"] <= 0.6
    assert rows[-1]["held_out_reward"] >= 0.9 and rows[-1]["held_out_accuracy"] >= 0.9
    assert rows[-1]["valid"] >= 0.9 and rows[1]["valid"] < 0.5


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


def test_labels_never_reach_an_update(tmp_path):
    asked = questions()
    flipped = replace(asked, labels=[1 - label for label in asked.labels])
    runs = {}
    for name, shown in (("right", asked), ("wrong", flipped)):
        made = trainer(tmp_path / name, asked=shown, reward=table(asked))
        done = made.train()
        runs[name] = weights(made), done, metrics(tmp_path / name)
    same(runs["right"][0], runs["wrong"][0])
    assert runs["right"][1] == runs["wrong"][1]
    for right, wrong in zip(runs["right"][2], runs["wrong"][2], strict=True):
        assert {k: v for k, v in right.items() if "accuracy" not in k} == {
            k: v for k, v in wrong.items() if "accuracy" not in k
        }
    assert runs["right"][2] != runs["wrong"][2]


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


@pytest.mark.parametrize("damage", ["tensors.safetensors", "state.json", "hashes.json"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage, caplog):
    whole = trainer(tmp_path / "whole")
    whole.train()
    first = trainer(tmp_path / "cut", stopping=lambda: len(metrics(tmp_path / "cut")) > 3)
    first.train()
    file = tmp_path / "cut" / "step-000003" / damage
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    second = trainer(tmp_path / "cut")
    assert second.session.progress.step == 2
    assert "step-000003: damaged" in caplog.text
    second.train()
    same(weights(whole), weights(second))
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


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


@pytest.mark.parametrize("setting", [{"accumulation": 4}, {"accumulation": 2, "gradient_checkpointing": True}])
def test_dividing_a_batch_changes_no_update(tmp_path, setting):
    runs = []
    for name, extra in (("whole", {}), ("parts", setting)):
        made = trainer(tmp_path / name, steps=2, max_gradient_norm=None, **extra)
        made.train()
        runs.append(weights(made))
    same(*runs, tolerance=1e-5)


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
