"""PPO on a tiny model: what it learns, what it must not see, and that dividing a batch changes nothing."""

from dataclasses import replace

import pytest
from tiny_trainer import metrics, questions, same, table, trainer, weights


def test_it_learns_what_is_rewarded(tmp_path):
    made = trainer(tmp_path, train="full", learning_rate=3e-3, steps=40, batch_size=24, evaluate_rows=24)
    done = made.train()
    rows = metrics(tmp_path)
    assert done.outcome == "finished"
    assert rows[0]["held_out_accuracy"] <= 0.6
    assert rows[-1]["held_out_reward"] >= 0.9 and rows[-1]["held_out_accuracy"] >= 0.9
    assert rows[-1]["valid"] >= 0.9 and rows[1]["valid"] < 0.5


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


@pytest.mark.parametrize("setting", [{"accumulation": 4}, {"accumulation": 2, "gradient_checkpointing": True}])
def test_dividing_a_batch_changes_no_update(tmp_path, setting):
    runs = []
    for name, extra in (("whole", {}), ("parts", setting)):
        made = trainer(tmp_path / name, steps=2, max_gradient_norm=None, **extra)
        made.train()
        runs.append(weights(made))
    same(*runs, tolerance=1e-5)
