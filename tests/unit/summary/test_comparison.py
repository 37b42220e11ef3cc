"""The comparison: hand-computed differences, from files in the formats of the stages before it."""

import shutil

import numpy as np
import pandas as pd
import pytest
from finished import PLAN, samples, write_suite
from scipy.stats import t, ttest_1samp, ttest_rel

from elkflow.common.errors import UserError
from elkflow.common.files import read_json, read_table, write_table
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
    # 15 of 30 groups of two changed, all to right; three tasks were looked at
    p_value = ttest_1samp([1] * 15 + [0] * 15, 0).pvalue
    assert first["p_value"] == pytest.approx(p_value) and first["p_holm"] == pytest.approx(3 * p_value)
    assert not first["within_noise"] and first["can_reject"]
    assert (first["method"], first["generalises_over"]) == ("cluster t, 30 groups", "questions")
    cloze = table.iloc[2]
    assert (cloze["method"], cloze["differing"], cloze["p_value"]) == ("McNemar mid-p", 1, pytest.approx(0.5))
    assert not cloze["can_reject"], "one question that differs can give no p-value below .5"
    assert table.iloc[1]["within_noise"] and table.iloc[1]["p_value"] == 1.0


def test_questions_of_one_group_do_not_pass_for_independent():
    base, tuned = samples("t", [0] * 40), samples("t", [1, 1, 0, 0] * 10)
    alone = comparison.compare_task(base, tuned)
    together = comparison.compare_task(base, tuned, pd.Series(np.arange(40) // 2))
    assert together["difference"] == alone["difference"] == 0.5
    # pairs that rise and fall together are half as many independent draws: intervals √2 times as wide
    ratio = (together["ci_high"] - together["ci_low"]) / (alone["ci_high"] - alone["ci_low"])
    assert 1.25 < ratio < 1.6


def test_questions_of_one_group_alone_give_no_interval():
    base, tuned = samples("t", [0] * 6), samples("t", [1, 1, 1, 1, 0, 0])
    found = comparison.compare_task(base, tuned, np.zeros(6))
    assert found["difference"] == pytest.approx(4 / 6) and found["method"] == "none: one group"
    assert np.isnan([found["ci_low"], found["ci_high"], found["p_value"], found["base_low"]]).all()
    (test,) = comparison._corrected([found], 0.05)
    assert test["within_noise"] and np.isnan(test["p_holm"]) and not test["can_reject"]


def test_texts_are_compared_by_students_test():
    values = np.random.default_rng(0).normal(1, 0.1, (2, 10))
    found = comparison.compare_task(*(samples("t", values=each) for each in values), unit="texts")
    assert (found["method"], found["differing"]) == ("Student t, 10 texts", None)
    assert found["p_value"] == pytest.approx(ttest_rel(values[1], values[0]).pvalue)


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
    found = comparison.over_seeds(PLAN, results, comparison.compare(PLAN, results)).set_index("task")
    row = found.loc["training"]
    assert row["per_seed"] == pytest.approx({0: 0.5, 1: 0.4})
    assert row["difference"] == pytest.approx(0.45)
    assert row["generalises_over"] == "questions and seeds"
    assert row["method"] == "t over questions and seeds, 30 groups, 2 seeds"
    # of 30 groups 15 gained 1, 12 nothing and 3 lost ½; seeds differ by 0.1, with one degree of freedom
    questions = np.var([1] * 15 + [0] * 12 + [-0.5] * 3, ddof=1) / 30
    seeds = np.var([0.5, 0.4], ddof=1) / 2
    half = (questions * t.ppf(0.975, 29) + seeds * t.ppf(0.975, 1)) / np.sqrt(questions + seeds)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((0.45 - half, 0.45 + half))
    cloze = found.loc["cloze"]
    assert cloze["ci_low"] < 0.25 < cloze["ci_high"], "seeds that answer alike still leave the questions"


def test_one_seed_generalises_over_questions(results):
    plan = PLAN.model_copy(update={"groups": [PLAN.groups[0].model_copy(update={"seeds": [0]})]})
    table = comparison.compare(plan, results)
    found = comparison.over_seeds(plan, results, table)
    assert set(found["generalises_over"]) == {"questions"}
    assert (
        found["ci_low"].tolist() == table["ci_low"].tolist() and found["p_value"].tolist() == table["p_value"].tolist()
    )


def test_runs_are_compared_answer_by_answer_with_the_first_of_them(results):
    both = PLAN.model_copy(update={"groups": [*PLAN.groups, PLAN.groups[0].model_copy(update={"runs": ["s"]})]})
    for seed in (0, 1):
        folder = results / f"evaluations/tuned/s/seed{seed}/target"
        shutil.copytree(results / f"evaluations/tuned/r/seed{seed}/target", folder)
        table = read_table(folder / "samples.parquet").to_pandas()
        table.loc[(table["task"] == "training") & (table["doc_id"].astype(int) < 6), "value"] = 0.0
        write_table(table, folder / "samples.parquet")
    (row,) = comparison.between_runs(both, results).to_dict("records")
    assert (row["run"], row["against"], row["seeds"]) == ("s", "r", 2)
    assert row["difference"] == pytest.approx(-6 / 60) and row["ci_low"] < -0.1 < row["ci_high"]
    assert not len(comparison.between_runs(PLAN, results)), "one run has nothing to be compared with"
