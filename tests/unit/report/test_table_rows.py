"""Rows of tables hold the numbers of the verdict."""

import pandas as pd
from finished import sweep_table

from elkflow.report import table_rows


def test_what_the_rewards_can_teach_stands_beside_training(verdict):
    rows = table_rows.trend_rows(verdict)
    assert [row["accuracy of the reward (ppo rows) [95 %]"] for row in rows] == ["90.0 % [85.0, 95.0]"] * 2


def test_swept_numbers_are_read_from_the_names():
    rows = sweep_table()
    axes = table_rows.sweep_axes(rows)
    assert list(axes) == ["coefficient"] and axes["coefficient"]["value"].tolist() == [0.0, 0.02, 0.1, 1.0]
    assert table_rows.sweep_axes(rows.assign(run="plain")) == {}
    two = rows.assign(run=[f"a+estimator=k{i % 2}+rank={2**i}" for i in range(4)])
    assert list(table_rows.sweep_axes(two)) == ["rank"]


def test_the_cost_of_doing_without_training_stands_beside_the_tuned_model(verdict):
    columns = ["run", "method", "n", "accuracy", "low", "high", "answered", "forward_passes", "forward_passes_shared"]
    table = pd.DataFrame([["r", "best of N samples", 4, 0.9, 0.85, 0.95, 1.0, 8.0, 3.1]], columns=columns)
    rows = table_rows.without_rl_rows(table, verdict)
    assert rows[0]["method"] == "best of N samples, N = 4" and rows[0]["accuracy [95 %]"] == "90.0 % [85.0, 95.0]"
    assert [row["accuracy [95 %]"].split(" [")[0] for row in rows[1:]] == ["100.0 %", "90.0 %"]
    assert table_rows.without_rl_rows(pd.DataFrame(), verdict) == []
