"""Figures hold the numbers they are given; pages hold every section and need no network."""

import json
import re

import numpy as np
import pandas as pd
from finished import PLAN, drawn

from elkflow.report import charts, pages, table_rows
from elkflow.report.html import Page
from elkflow.summary.diagnosis import OUTCOMES
from elkflow.summary.results import read_steps


def test_bars_show_shares_with_their_intervals(verdict):
    comparison = pd.DataFrame(verdict["evaluations"])
    bits = comparison.iloc[:1].assign(task="prose", metric="bits_per_byte", higher_is_better=False, base=0.9, tuned=0.8)
    rows = drawn(charts.before_after(pd.concat([comparison, bits])))
    assert {(row["task"], row["model"], row["panel"]) for row in rows} == {
        (task, model, f"r, seed {seed}")
        for task in ("training", "held_out", "cloze")
        for model in ("base", "tuned")
        for seed in (0, 1)
    }
    tuned = next(row for row in rows if (row["task"], row["model"], row["panel"]) == ("training", "tuned", "r, seed 1"))
    assert tuned["value"] == 0.9 and tuned["low"] < 0.9 < tuned["high"]


def test_training_shows_reward_and_truth(results):
    rows = drawn(charts.training_curves(read_steps(PLAN, results)))
    assert len(rows) == 2 * 10 * 2 and {row["series"].split("'")[0].split()[0] for row in rows} == {"probe", "gold"}


def test_what_the_rewards_can_teach_stands_beside_training(verdict):
    rows = table_rows.trend_rows(verdict)
    assert [row["accuracy of the reward (ppo rows) [95 %]"] for row in rows] == ["90.0 % [85.0, 95.0]"] * 2


def test_health_leaves_out_what_was_not_written(results):
    steps = read_steps(PLAN, results).drop(columns="entropy")
    assert {row["sign"] for row in drawn(charts.training_health(steps))} == set(charts.HEALTH) - {"entropy"}


def sweep_rows():
    coefficients = [0.0, 0.02, 0.1, 1.0]
    return pd.DataFrame(
        {
            "run": [f"kl+coefficient={c}" for c in coefficients],
            "seed": 0,
            "outcome": ["collapsed", "overfits the probe", "honest", "unchanged"],
            "training_difference": [0.0, 0.1, 0.4, 0.01],
            "training_ci_low": [-0.05, 0.05, 0.35, -0.02],
            "training_ci_high": [0.05, 0.15, 0.45, 0.04],
            "agrees_truth": [0.5, 0.6, 0.9, 0.52],
            "agrees_probe": [0.5, 0.95, 0.92, 0.51],
        }
    )


def test_swept_numbers_are_read_from_the_names():
    rows = sweep_rows()
    axes = table_rows.sweep_axes(rows)
    assert list(axes) == ["coefficient"] and axes["coefficient"]["value"].tolist() == [0.0, 0.02, 0.1, 1.0]
    assert table_rows.sweep_axes(rows.assign(run="plain")) == {}
    two = rows.assign(run=[f"a+estimator=k{i % 2}+rank={2**i}" for i in range(4)])
    assert list(table_rows.sweep_axes(two)) == ["rank"]


def test_sweeps_show_every_training_and_its_outcome():
    rows = sweep_rows()
    axes = table_rows.sweep_axes(rows)
    assert {row["outcome"] for row in drawn(charts.gains(rows))} == set(rows["outcome"])
    shown = drawn(charts.outcomes(axes["coefficient"], "coefficient"))
    assert len(shown) == 8 and {row["value"] for row in shown} == {0.0, 0.02, 0.1, 1.0}
    read = axes["coefficient"].assign(frozen_auroc=[0.9, 0.6, 0.9, 0.9], fresh_auroc=0.95)
    assert len(charts.outcomes(read, "coefficient").hconcat) == 2
    assert len(charts.sweep(rows, {"coefficient": read}).vconcat) == 2


def test_every_outcome_has_a_colour():
    assert set(charts.OUTCOME_COLOURS) == {outcome.name for outcome in OUTCOMES.values()}


def test_the_same_figure_is_the_same_file(tmp_path, results):
    for name in "ab":
        charts.save(charts.training_curves(read_steps(PLAN, results)), tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_pages_need_no_network_and_break_on_no_text(tmp_path):
    page = Page("<b>&")
    page.text("</script><script>alert(1)</script>")
    page.table([{"a": "1 < 2", "b": "</td>"}])
    page.chart(charts.gains(sweep_rows().assign(run="</script>")))
    page.save(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "alert(1)</script>" not in text and "1 &lt; 2" in text and "&lt;b&gt;&amp;" in text
    assert not re.search(r'(src|href)="https?://', text)
    spec = re.search(r'vegaEmbed\("#chart\d+", (.*), \{actions', text)[1]
    assert json.loads(spec)["datasets"]


def test_overview_tells_good_news_and_bad(verdict):
    texts = [block["text"] for block in pages.overview_page(verdict).blocks if block["kind"] == "flag"]
    assert len(texts) == 2 and all(text.startswith("Honest") for text in texts)
    hacked = verdict["trainings"][0] | {
        "exploits_probe": True,
        "outcome": "overfits_probe",
        "ended": "collapsed",
        "reason": "same answer",
    }
    probes = [probe | {"admitted": False} for probe in verdict["probes"]]
    page = pages.overview_page(verdict | {"trainings": [hacked], "probes": probes})
    flags = [block["text"] for block in page.blocks if block["kind"] == "flag"]
    assert [text.split(":")[0].split(" (")[0] for text in flags] == [
        "Overfits the probe",
        "Training ended early",
        "Reward hacking",
        "The probe does not lead its baselines by the required margin; it was let through on request.",
    ]
    assert not any(block["good"] for block in page.blocks if block["kind"] == "flag")


def test_a_probe_of_other_questions_does_not_pass_for_what_the_model_knows(verdict):
    """Its own figures are marked with its dataset; the large figure is how often it is right about these questions."""
    other = verdict | {"probes": [probe | {"dataset": "cue"} for probe in verdict["probes"]]}
    for shown, what, place in ((verdict, "what the model knows", ""), (other, "what the probe holds true", " on cue")):
        numbers = next(block["numbers"] for block in pages.overview_page(shown).blocks if block["kind"] == "numbers")
        assert (numbers[1]["label"], numbers[1]["value"]) == (what, "90.0 %")
        assert numbers[1]["note"] == f"AUROC 0.970 [0.950, 0.990]{place}"
        headline = table_rows.overview_rows(shown)[0]
        assert (headline["probe AUROC"], headline["probe's accuracy"]) == (f"0.970{place}", "90.0 %")


def test_worse_abilities_are_told(verdict):
    worse = {"kind": "general", "within_noise": False, "difference": -0.2, "ci_low": -0.3, "ci_high": -0.1}
    rows = [row | worse if row["task"] == "cloze" else row for row in verdict["evaluations"]]
    texts = [block["text"] for block in pages.overview_page(verdict | {"evaluations": rows}).blocks if "good" in block]
    assert sum("Other abilities suffered: cloze -20.0 [-30.0, -10.0] points" in text for text in texts) == 2


def test_fresh_probes_and_baselines_without_training_have_a_place(verdict):
    after = {"frozen": {"auroc": 0.6, "auroc_low": 0.55, "auroc_high": 0.65, "layer": 2}}
    after |= {"fresh": {"auroc": 0.95, "auroc_low": 0.93, "auroc_high": 0.97, "layer": 3}, "before": 0.9712}
    trainings = [training | {"probes_after": after} for training in verdict["trainings"]]
    without = [{"method": "best of 4", "accuracy": "0.9"}]
    comparison = pd.DataFrame(verdict["evaluations"])
    page = pages.evaluation_page(verdict | {"trainings": trainings}, comparison, without)
    headings = [block["text"] for block in page.blocks if block["kind"] == "heading"]
    assert headings == ["The probe or the truth?", "Is the truth obfuscated?", "Without reinforcement learning"]
    (row, _) = table_rows.fresh_probe_rows(verdict | {"trainings": trainings})
    assert row["before training"] == "0.971, layer 2"
    assert (
        row["after, frozen probe"].startswith("0.600") and row["after, fresh probe"] == "0.950 [0.930, 0.970], layer 3"
    )


def test_numbers_of_many_trainings_become_one_plot(verdict):
    many = [training | {"run": f"r+rank={index}"} for index in range(20) for training in verdict["trainings"][:1]]
    rows = [
        row | {"run": f"r+rank={index}"} for index in range(20) for row in verdict["evaluations"] if row["seed"] == 0
    ]
    page = pages.overview_page(verdict | {"trainings": many, "evaluations": rows})
    assert sum(block["kind"] == "numbers" for block in page.blocks) == pages.MOST_SHOWN
    assert sum(block["kind"] == "chart" for block in page.blocks) == 1  # every training, and along the rank
    assert len(next(b for b in page.blocks if b["kind"] == "table")["rows"]) == 20
    assert not np.isnan([row["difference"] for row in rows]).any()


def test_the_cost_of_doing_without_training_stands_beside_the_tuned_model(verdict):
    columns = ["run", "method", "n", "accuracy", "low", "high", "answered", "forward_passes", "forward_passes_shared"]
    table = pd.DataFrame([["r", "best of N samples", 4, 0.9, 0.85, 0.95, 1.0, 8.0, 3.1]], columns=columns)
    rows = table_rows.without_rl_rows(table, verdict)
    assert rows[0]["method"] == "best of N samples, N = 4" and rows[0]["accuracy [95 %]"] == "90.0 % [85.0, 95.0]"
    assert [row["accuracy [95 %]"].split(" [")[0] for row in rows[1:]] == ["100.0 %", "90.0 %"]
    assert table_rows.without_rl_rows(pd.DataFrame(), verdict) == []
