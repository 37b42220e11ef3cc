"""The comparison: hand-computed differences, from files in the formats of the stages before it."""

import shutil

import numpy as np
import pandas as pd
import pytest
from finished import PLAN, samples, write_suite

from elkflow.common.errors import UserError
from elkflow.common.files import read_json
from elkflow.report import terminal
from elkflow.report.summarise import summarise
from elkflow.summary import comparison
from elkflow.verify import independent


@pytest.fixture
def results(results, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(results, tmp_path / "results")


def test_every_run_seed_and_task_is_compared(results):
    table = comparison.compare(PLAN, results)
    assert list(zip(table["seed"], table["task"], table["kind"], strict=True)) == [
        (seed, task, kind)
        for seed in (0, 1)
        for task, kind in (("training", "training"), ("held_out", "held_out"), ("cloze", "general"))
    ]
    first = table.iloc[0]
    assert (first["base"], first["tuned"], first["difference"]) == (0.5, 1.0, 0.5)
    assert first["ci_low"] < 0.5 < first["ci_high"]
    # 30 questions changed, all to right: two-sided exact p is 2 / 2**30, and three tasks were looked at
    assert first["p_value"] == pytest.approx(2 / 2**30)
    assert first["p_holm"] == pytest.approx(6 / 2**30)
    assert not first["within_noise"]
    assert table.iloc[1]["within_noise"] and table.iloc[1]["p_value"] == 1.0


def test_questions_of_one_group_do_not_pass_for_independent():
    base, tuned = samples("t", [0] * 40), samples("t", [1, 1, 0, 0] * 10)
    alone = comparison.compare_task(base, tuned)
    together = comparison.compare_task(base, tuned, pd.Series(np.arange(40) // 2))
    assert together["difference"] == alone["difference"] == 0.5
    # pairs that rise and fall together are half as many independent draws: intervals √2 times as wide
    ratio = (together["ci_high"] - together["ci_low"]) / (alone["ci_high"] - alone["ci_low"])
    assert 1.25 < ratio < 1.6


def test_different_questions_are_refused(results):
    tuned = samples("cloze", [1, 1, 1, 0])
    tuned.loc[2, "id"] = "another"
    write_suite(results / "evaluations/tuned/r/seed1/control", [tuned])
    with pytest.raises(UserError, match="cloze: base and tuned model answered different questions"):
        comparison.compare(PLAN, results)


def test_row_order_does_not_matter():
    base, tuned = samples("t", [0, 1, 0, 1, 1]), samples("t", [1, 1, 0, 0, 1])
    first, second = comparison.pair_samples(
        base.sample(frac=1, random_state=0), tuned.sample(frac=1, random_state=1), "t"
    )
    assert comparison.compare_task(first, second) == comparison.compare_task(base, tuned)


def test_a_group_is_the_mean_of_its_parts_and_bits_are_weighted():
    table = samples("mmlu", None, values=[1, 0, 1, 1, 1, 1], parts=["a", "a", "b", "b", "b", "b"])
    assert comparison.influence(table).mean() == pytest.approx((0.5 + 1.0) / 2)
    table = samples("prose", None, values=[2.0, 4.0], weights=[3.0, 1.0])
    assert comparison.influence(table).mean() == pytest.approx(2.5)
    table = samples("plain", [1, 0, 1])
    assert comparison.influence(table) == pytest.approx([1, 0, 1])


def test_influence_spreads_like_the_weighted_mean():
    """The spread of the linearised values is that of the ratio estimate, by simulation."""
    random = np.random.default_rng(0)
    weights = random.uniform(1, 5, 400)
    values = random.normal(2, 1, 400)
    table = samples("prose", None, values=values, weights=weights.tolist())
    draws = random.integers(0, 400, (4000, 400))
    direct = (values[draws] * weights[draws]).sum(1) / weights[draws].sum(1)
    linear = comparison.influence(table)[draws].mean(1)
    assert linear.std() == pytest.approx(direct.std(), rel=0.05)


def test_sign_flip_agrees_with_the_exact_count():
    # eight equal differences: only all-plus and all-minus are as extreme, 2 / 2**8
    assert comparison.sign_flip_test(np.ones(8)) == pytest.approx(2 / 256, rel=0.35)
    assert comparison.sign_flip_test(np.zeros(8)) == 1.0
    assert comparison.sign_flip_test(np.array([1.0, -1.0])) == 1.0


def board(results, folder, right, prose=False):
    """A leaderboard of three tasks of other sizes, one of them in two parts, answered right as often as told."""
    tables = [
        samples(task, [1] * count + [0] * (size - count)) for (task, size), count in zip(BOARD, right, strict=True)
    ]
    tables[2]["part"] = ["a"] * 10 + ["b"] * 30
    write_suite(results / folder / "board", tables)
    if prose:
        write_suite(
            results / folder / "prose", [samples("x", [1] * 4), samples("y", values=[0.5] * 4)], "bits_per_byte"
        )


BOARD = (("arc", 20), ("hella", 80), ("mmlu", 40))


def test_a_suite_has_the_plain_mean_of_its_tasks(results):
    plan = PLAN.model_copy(update={"suites": {"target": ["training", "held_out"], "board": [], "prose": []}})
    board(results, "evaluations/base/m/d", (10, 40, 10), prose=True)
    for seed in (0, 1):
        board(results, f"evaluations/tuned/r/seed{seed}", (15, 40, 10), prose=True)
    table = comparison.suite_averages(plan, results)
    assert list(zip(table["seed"], table["suite"], table["tasks"], strict=True)) == [(0, "board", 3), (1, "board", 3)]
    row = table.iloc[0]
    assert row["base"] == pytest.approx((10 / 20 + 40 / 80 + (10 / 10 + 0 / 30) / 2) / 3)
    assert row["difference"] == pytest.approx(0.25 / 3)
    # only arc changed, on 5 of 20 questions: a third of its own error, √(0.25 · 0.75 / 20)
    width = (row["ci_high"] - row["ci_low"]) / 2
    assert width == pytest.approx(1.96 / 3 * np.sqrt(0.25 * 0.75 / 20), rel=0.2)


def test_the_average_stands_in_the_verdict_the_report_and_the_terminal(results):
    plan = PLAN.model_copy(update={"suites": {"target": ["training", "held_out"], "board": []}})
    board(results, "evaluations/base/m/d", (10, 40, 10))
    for seed in (0, 1):
        board(results, f"evaluations/tuned/r/seed{seed}", (15, 40, 10))
    folder = results / "summary"
    summarise(plan, results, folder)
    shown = "board, average of 3 tasks"
    assert shown in (folder / "comparison.md").read_text() and shown in (folder / "evaluation.html").read_text()
    assert "board, average of 3" in (folder / "overview.html").read_text()
    verdict = read_json(folder / "verdict.json")
    assert f"{shown}: 50.0 % -> 58.3 %" in terminal.verdict_text(verdict)
    told = "AUROC on the tuned model's states: 0.900 frozen probe, 0.990 fresh probe"
    assert told not in terminal.verdict_text(verdict)
    verdict["trainings"][0]["probes_after"] = {"frozen": {"auroc": 0.9}, "fresh": {"auroc": 0.99}}
    assert terminal.verdict_text(verdict).count(told) == 1
    last = terminal.verdict_text(verdict).splitlines()
    (means,) = (line for line in last if line.split()[:3] == ["r", "training", "2"])
    assert "+45.0 [" in means and "0: +50.0, 1: +40.0" in means
    assert independent.recompute_independently(results)[1] == []


def test_over_seeds_keeps_every_seed(results):
    row = comparison.over_seeds(comparison.compare(PLAN, results)).set_index("task").loc["training"]
    assert row["per_seed"] == pytest.approx({0: 0.5, 1: 0.4})
    assert row["difference"] == pytest.approx(0.45)
    # Student with one degree of freedom: 12.706 · 0.0707 / √2
    assert row["ci_high"] - row["difference"] == pytest.approx(
        12.7062 * np.std([0.5, 0.4], ddof=1) / np.sqrt(2), rel=1e-3
    )
