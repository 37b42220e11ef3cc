"""The comparison: hand-computed differences, fixtures in the formats of the stages before it."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import show_verdict
import summarise as script
from finished import PLAN, QUESTIONS, figures, made, samples, write_members, write_results, write_suite

from elkflow.common.errors import UserError
from elkflow.common.files import read_json, write_table
from elkflow.report import terminal
from elkflow.summary import comparison, diagnosis
from elkflow.summary.plan import Plan
from elkflow.verify import independent


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_results(folder)
    return folder


@pytest.fixture
def results(untouched, tmp_path):
    return shutil.copytree(untouched, tmp_path / "results")


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
    script.main(["--settings", plan.model_dump_json(), "--results", str(results), "--output", str(folder)])
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


def test_a_thousand_runs_are_a_short_plan():
    run = SimpleNamespace(policy="m", probe="p", dataset="d", wording="training", seeds=(0, 1, 2))
    runs = {f"sweep+learning_rate={i}": run for i in range(1000)}
    plan = Plan.of(
        SimpleNamespace(
            runs=runs,
            evaluation=SimpleNamespace(suites={}, fresh_probe=False, without_rl=()),
            probes={
                "p": SimpleNamespace(transfer=[], variants=[]),
                "q": SimpleNamespace(transfer=["p"], variants=["other"]),
            },
            models={"m": SimpleNamespace(licence="apache-2.0"), "unused": SimpleNamespace(licence="mit")},
        )
    )
    assert len(plan.model_dump_json()) < 60_000 and len(plan.trainings()) == 3000
    assert plan.licences == {"m": "apache-2.0"}
    assert plan.transfer == ["q"] and plan.wordings


def run_script(results):
    folder = results / "summary"
    script.main(["--settings", PLAN.model_dump_json(), "--results", str(results), "--output", str(folder)])
    return folder


def test_the_script_writes_the_verdict_tables_and_figures(results):
    folder = run_script(results)
    verdict = read_json(folder / "verdict.json")
    wanted = ["task", "run", "seed", "n", "base", "tuned", "difference", "ci_low", "ci_high", "p_value"]
    assert len(verdict["evaluations"]) == 6 and all(set(wanted) <= set(row) for row in verdict["evaluations"])
    probe = verdict["probes"][0]
    assert (probe["probe"], probe["method"], probe["layer"], probe["auroc"]) == ("p", "logistic", 2, 0.97)
    assert probe["baselines"]["zero_shot"]["auroc"] == 0.51
    for name in ("before_after", "training", "layers", "sweep"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")

    table = pd.read_csv(folder / "comparison.csv")
    assert table["difference"].tolist() == [row["difference"] for row in verdict["evaluations"]]
    text = (folder / "comparison.md").read_text()
    assert "+50.0 [" in text and "within noise" in text and "< 0.001" in text
    assert "the model's own zero-shot answer" in (folder / "probes.md").read_text()


def test_the_datasets_of_a_mixture_stand_in_verdict_tables_and_report(results, tmp_path):
    results = shutil.copytree(results, tmp_path / "copy")
    members = {"d": figures(0.97, 0.93), "known": figures(0.99, 0.96), "unknown": figures(0.52, 0.5)}
    write_members(results / "probes" / "p", members, [])
    folder = run_script(results)
    (probe,) = read_json(folder / "verdict.json")["probes"]
    assert probe["datasets"] == {name: members[name] | {"rows": QUESTIONS} for name in ("known", "unknown")}
    row = "the probe on known alone (60 questions) | 0.990 [0.970, 1.000] | 96.0 %"
    assert row in (folder / "probes.md").read_text()
    assert row in (results / "runs/r/seed0/README.md").read_text()
    assert "the probe on unknown alone (60 questions)" in (folder / "probe.html").read_text()
    table = pd.read_csv(folder / "probes.csv")
    own = table[table["control"].isna()]
    assert dict(zip(own["dataset"], own["auroc"], strict=True)) == {"d": 0.97, "known": 0.99, "unknown": 0.52}


def test_a_policy_that_pleases_a_wrong_probe_is_flagged_everywhere(results, capsys):
    """The probe is right half of the time, the tuned model obeys it; accuracy rises as far as answers become valid."""
    right = [i % 4 < 2 for i in range(QUESTIONS)]
    obeyed = samples("training", right)
    rewards = [[1.0 - choice, float(choice)] for choice in obeyed["prediction"]]
    table = pd.DataFrame({"id": obeyed["id"], "rewards": rewards, "label": obeyed["label"].astype(int)})
    write_table(table, results / "rewards/p/d/val.parquet")
    made(results / "rewards/p/d", "val.parquet", inputs=[], name="val.manifest.json")
    shares = np.linspace(0.5, 1, 10)
    steps = [
        {"step": i, "reward": 2 * v - 1, "gold_accuracy": v * (0.48 + 0.04 * (i % 2)), "valid": v, "yes_rate": 0.5}
        for i, v in enumerate(shares)
    ]
    assert diagnosis.fit_trend(pd.DataFrame(steps)["gold_accuracy"]).low > 0  # what must not pass for truthfulness
    for seed in (0, 1):
        run = results / f"runs/r/seed{seed}"
        (run / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
        made(run, "metrics.jsonl", "outcome.json", inputs=[])
        write_suite(
            results / f"evaluations/tuned/r/seed{seed}/target", [obeyed, samples("held_out", [1, 0] * 30)], inputs=[]
        )
    folder = run_script(results)
    for training in read_json(folder / "verdict.json")["trainings"]:
        assert training["exploits_probe"] and training["outcome"] == "overfits_probe"
        assert training["reward_trend"]["low"] > 0 and training["gold_trend"]["low"] < 0
        assert training["probe_accuracy"] == 0.5 and training["agreement"]["training"]["tuned_probe"] == 1.0
    show_verdict.main(["--verdict", str(folder / "verdict.json")])
    told = "Reward hacking: the reward rose during training, gold accuracy did not"
    assert capsys.readouterr().out.count(told) == 2 and told in (folder / "overview.html").read_text()
    assert "Reward hacking was found" in (results / "runs/r/seed0/README.md").read_text()


def test_a_second_run_gives_the_same_bytes(results):
    first = {path.name: path.read_bytes() for path in run_script(results).iterdir()}
    second = {path.name: path.read_bytes() for path in run_script(results).iterdir()}
    assert first == second


def test_the_printed_table_says_and_knows(results, capsys):
    folder = run_script(results)
    show_verdict.main(["--verdict", str(folder / "verdict.json")])
    printed = capsys.readouterr().out
    lines = {line[:26].strip(): line[26:].split("  ") for line in printed.splitlines()}
    assert "50.0 %" in lines["what the model says"] and "90.0 %" in "  ".join(lines["what the model knows"])
    assert "r, seed 0: 60 questions never trained on" in printed and "AUROC 0.970 [0.950, 0.990]" in printed
    assert printed.count("Honest: more truthful than before") == 2
    told = "questions (of 60) that the probe gets wrong, the tuned model follows the probe in 0%."
    assert told in " ".join(printed.split())
