"""Charts hold the numbers they are given."""

import pandas as pd
from finished import PLAN, drawn, sweep_table

from elkflow.report import charts, table_rows
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


def test_health_leaves_out_what_was_not_written(results):
    steps = read_steps(PLAN, results).drop(columns="entropy")
    assert {row["sign"] for row in drawn(charts.training_health(steps))} == set(charts.HEALTH) - {"entropy"}


def test_sweeps_show_every_training_and_its_outcome():
    rows = sweep_table()
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
