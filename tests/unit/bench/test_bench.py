"""The benchmarks' own arithmetic, and our side of bench/ppo_speed.py on a tiny model."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from finished import PLAN, write_results
from tiny import save_tiny_model
from tiny_trainer import questions

from elkflow.common.files import write_json, write_table
from elkflow.ppo import schedule

sys.path.append(str(Path(__file__).resolve().parents[3] / "bench"))
import ppo_ablation
import ppo_curves
import ppo_ours
import ppo_quality
import ppo_speed

coverage = SimpleNamespace(**runpy.run_path(ppo_speed.__file__.replace("ppo_speed", "coverage")))  # not the package


def test_a_ratio_is_the_median_of_the_rounds():
    seconds = {
        ("peer", "float32"): [30.0, 40.0, 32.0],
        ("peer", "bfloat16"): [20.0, 20.0, 20.0],
        ("ours", "float32"): [10.0, 10.0, 16.0],
        ("ours", "bfloat16"): [5.0, 4.0, 5.0],
    }
    more = {"parts": {"update": 1.0}, "limit": 2.5, "activation_bytes": 9.0, "peak_memory_mb": 7.0}
    found = ppo_speed.summary({way: [more | {"seconds": took} for took in rounds] for way, rounds in seconds.items()})
    assert (found["ratio_fp32"], found["ratio_best"], found["best_dtype"]) == (3.0, 6.4, "bfloat16")
    assert found["seconds_per_step"]["peer"] == {"float32": 32.0, "bfloat16": 20.0}
    assert found["matmul_share"] == {"float32": 0.25, "bfloat16": 0.5}


@pytest.mark.parametrize("minibatch", [4, 1])
def test_our_side_makes_the_steps_it_is_asked_for(tmp_path, minibatch):
    checkpoint, asked = save_tiny_model(tmp_path / "model"), questions(8)
    rows = {
        "id": asked.ids,
        "prompt": asked.prompts,
        "answers": asked.answers,
        "label": asked.labels,
        "group": asked.ids,
    }
    write_table(pd.DataFrame(rows), tmp_path / "prompts.parquet")
    write_table(pd.DataFrame({"id": asked.ids, "rewards": [[0.0, 1.0]] * 8}), tmp_path / "rewards.parquet")
    job = {"checkpoint": checkpoint, "dtype": "float32", "minibatch_size": minibatch, "tokens": asked.tokens}
    job |= {"prompts": tmp_path / "prompts.parquet", "table": tmp_path / "rewards.parquet"}
    job["settings"] = ppo_speed.THESIS | {"batch_size": 4}
    ours = ppo_ours.Ours(job, tmp_path / "run")
    taken = schedule.batch_rows(8, 4, 0, 0)
    done = ours.step(taken)
    assert done["updates"] == 4 * 4 // minibatch
    assert done["tokens"] == sum(ours.tokens(part) for part in ppo_ours.cut(taken, minibatch))
    assert ours.tokens(taken[:1]) == len(asked.tokens[taken[0]]) + 1
    assert ours.tokens([taken[0]] * 3) == len(asked.tokens[taken[0]]) + 3
    assert done["limit"] > 0 and 0 < done["parts"]["update"] < done["seconds"]
    blocks = 4 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)  # q and o, k and v of one head, the inner layers
    assert sum(weight.numel() for weight in ours.weights()) == blocks


def test_an_ablation_compares_medians_within_rounds():
    lines = ppo_ablation.table({ppo_ablation.ALL: [10.0, 12.0, 11.0], "a trick": [11.0, 12.0, 13.2]})
    assert [line.split()[-2:] for line in lines[1:]] == [["11.00", "0.0%"], ["12.00", "10.0%"]]


def test_curves_that_differ_are_told_from_noise():
    generator = torch.Generator().manual_seed(0)
    pairs = [torch.rand(2, 16, 20, generator=generator) for _ in range(100)]
    found = [ppo_curves.compared(*pair) for pair in pairs]
    assert 88 <= sum(one["low"] < 0 < one["high"] for one in found) <= 99  # of intervals of 95 %
    assert all((one["low"] < 0 < one["high"]) == (one["p_value"] > 0.05) for one in found)
    apart = ppo_curves.compared(pairs[0][0] + 0.3, pairs[0][1])
    assert apart["low"] > 0.2 and apart["p_value"] < 1e-6 and apart["steps_apart"] > 10
    assert ppo_curves.reward("w30 w7 w47") == pytest.approx(2 / 3) and ppo_curves.reward("") == 0.0


def test_the_goal_is_reached_at_an_evaluation():
    rows = [{"step": 0, "held_out_accuracy": 0.5}, {"step": 1, "seconds": 9.0}]
    assert ppo_quality.first_good(rows) is None
    rows += [{"step": 2, "seconds": 3.0, "held_out_accuracy": 0.85}, {"step": 3, "seconds": 1.0}]
    assert ppo_quality.first_good(rows) == {"step": 2, "accuracy": 0.85, "seconds": 12.0}


@pytest.fixture
def results(tmp_path):
    """A quickstart in small, which took 30 s to reach the goal."""
    save_tiny_model(tmp_path / "models/smollm2/checkpoint")
    for split, seed in (("ppo", 0), ("val", 1)):
        asked = questions(16, seed)
        texts = [f"{i} {text}" for i, text in enumerate(asked.prompts)]
        rows = {"id": asked.ids, "prompt": texts, "answers": asked.answers, "label": asked.labels, "group": asked.ids}
        write_table(pd.DataFrame(rows), tmp_path / f"prompts/smollm2/countries/training/{split}.parquet")
        rewards = pd.DataFrame({"id": asked.ids, "rewards": [[1.0 - y, float(y)] for y in asked.labels]})
        write_table(rewards, tmp_path / f"rewards/truth/countries/{split}.parquet")
    settings = {"steps": 4, "batch_size": 8, "generations": 4, "evaluate_every": 2, "evaluate_rows": 8}
    facts = {"settings": settings, "facts": {"dtype": "float32"}}
    write_json(tmp_path / "runs/quickstart/seed0/manifest.json", facts)
    lines = [{"step": step, "seconds": 15.0, "held_out_reward": 0.9, "held_out_accuracy": 0.9} for step in (1, 2, 4)]
    lines[0]["held_out_accuracy"] = 0.5
    (tmp_path / "runs/quickstart/seed0/metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return tmp_path


def test_the_peers_steps_are_counted_up_to_ten_times_our_seconds(results, tmp_path):
    thesis = {"table_seconds": 10.0, "seconds_per_step": {"peer": {"float32": 30.0}}, "online_reward_seconds": 50.0}
    one = ppo_quality.time_to_quality(results, {"thesis": thesis}, tmp_path / "quality", "float32", 1)
    assert one["peer"]["steps"] == 1 and one["at_least"] and one["ratio"] == pytest.approx(80 / 40)
    whole = ppo_quality.time_to_quality(results, {"thesis": thesis}, tmp_path / "quality", "float32", None)
    assert whole["ours"] == {"step": 2, "accuracy": 0.9, "seconds": 30.0, "table_seconds": 10.0, "total_seconds": 40.0}
    assert whole["peer"]["steps"] == 5 and not whole["peer"]["reached"]  # 5 steps of 80 s are ten times 40 s
    assert whole["ratio"] == pytest.approx(10) and set(whole["peer"]["accuracy"]) == {0, 5}


def test_algorithms_are_compared_at_the_same_step(results, tmp_path):
    table = ppo_quality.algorithms(results, tmp_path / "quality", ["rloo"], 2)
    assert {name: (row["steps"], row["rollouts"]) for name, row in table.items()} == {"ppo": (2, 16), "rloo": (2, 16)}
    assert table["ppo"]["held_out_accuracy"] == 0.9 and 0 <= table["rloo"]["held_out_accuracy"] <= 1


def test_an_ablation_makes_steps_without_each_trick(results):
    seconds = ppo_ablation.measure(results, 2)
    assert len(seconds) == 4 and all(len(found) == 2 and min(found) > 0 for found in seconds.values())


def test_the_naive_test_of_finished_results(tmp_path, capsys):
    """30 of 60 questions turned right, none wrong: 2 of the 2^30 patterns, and three tasks were looked at."""
    write_results(tmp_path)
    write_json(tmp_path / "summary/manifest.json", {"settings": PLAN.model_dump(mode="json")})
    coverage.print_naive_tests(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * 2 * 3, "two seeds, two wordings"
    assert lines[0].startswith("r, seed 0, training: +50.0 [") and lines[1].startswith("  cluster t, 30 groups: p ")
    assert lines[2] == f"  McNemar on questions (30 to right, 0 to wrong): p {2**-29:.2g}, after Holm {3 * 2**-29:.2g}"
    assert lines[5] == "  McNemar on questions (0 to right, 0 to wrong): p 1, after Holm 1"


def test_the_coverage_table_counts_what_it_simulates():
    (row, *_) = coverage.shares(np.random.default_rng(0), 40)
    assert row.simulations == 40 and 0.8 <= row.found <= 1 and row.nominal == ".95"
    estimates = [coverage.inference.Estimate(0.5, 0.4, 0.6, 0.01), coverage.inference.Estimate(0.5, 0.4, 0.6, 0.2)]
    assert coverage.covers(estimates, 0.5) == 1 and coverage.covers(estimates, 0.7) == 0
    assert coverage.rejects(estimates) == 0.5
