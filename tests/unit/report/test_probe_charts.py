"""Figures about probes hold the numbers they are given, and are drawn only where there is something to show."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from finished import PLAN, drawn

from elkflow.report import charts, pages, probe_charts, table_rows
from elkflow.summary.results import read_probe_tables


@pytest.fixture
def found(results):
    return read_probe_tables(PLAN, results)


def figures(value):
    return {"auroc": value, "auroc_low": value - 0.02, "auroc_high": value + 0.02}


def test_one_probe_under_one_wording_has_three_figures(found, verdict):
    drawings = probe_charts.draw_all(found, table_rows.chosen_layers(verdict))
    assert list(drawings) == ["layers", "reliability", "rewards"]
    page = pages.probe_page(verdict, drawings)
    assert sum(block["kind"] == "chart" for block in page.blocks) == 3


def test_every_figure_has_a_title_and_a_text():
    assert set(probe_charts.TITLES) == set(pages.CAPTIONS)


def test_layers_show_bands_of_methods_and_controls_and_mark_the_layer_in_use(found, verdict):
    chance = [{"method": name, "layer": i, **figures(0.5)} for name in ("shuffled_labels", "crc") for i in range(4)]
    table = pd.concat([found["layers"], pd.DataFrame(chance).assign(probe="p")])
    rows = drawn(probe_charts.layers(table, table_rows.chosen_layers(verdict), found["controls"]))
    assert [(row["method"], row["layer"]) for row in rows if row.get("chosen")] == [("logistic", 2)]
    assert {row["method"] for row in rows if "method" in row} == {"logistic", "ccs", "crc", "shuffled_labels"}
    assert {row["control"] for row in rows if "control" in row} == {"majority", "zero_shot"}
    banded = [row for row in rows if row.get("auroc_low") is not None]
    assert all(row["auroc_low"] <= row["auroc"] <= row["auroc_high"] for row in banded) and len(banded) >= 16


def test_every_method_and_control_with_layers_has_its_own_colour():
    assert len(set(probe_charts.METHODS.values())) == len(probe_charts.METHODS)


def test_reliability_by_hand():
    """Two slices: 0.25 given to four rows, of which one is right; 0.75 to four, of which all are."""
    odds = np.log([0.25 / 0.75] * 4 + [0.75 / 0.25] * 4)
    scores = pd.DataFrame({"probe": "p", "log_odds": odds, "label": [1, 0, 0, 0, 1, 1, 1, 1], "group": range(8)})
    table = probe_charts.reliability_table(scores)
    assert table["predicted"].tolist() == pytest.approx([0.25, 0.75])
    assert table["share"].tolist() == [0.25, 1.0] and table["rows"].tolist() == [4, 4]
    assert table["low"][0] < 0.25 < table["high"][0] and table["low"][1] < table["high"][1] == 1
    dots = [row for row in drawn(probe_charts.reliability(table)) if "share" in row]
    assert [row["share"] for row in dots] == [0.25, 1.0]


def test_reliability_draws_groups_together():
    scores = pd.DataFrame(
        {"probe": "p", "log_odds": 0.1, "label": np.repeat([0, 1], 50), "group": np.repeat(range(4), 25)}
    )
    apart = probe_charts.reliability_table(scores.assign(group=range(100)))
    together = probe_charts.reliability_table(scores)
    assert (together["high"] - together["low"])[0] > 2 * (apart["high"] - apart["low"])[0]


def test_the_histogram_counts_every_row_once_by_its_label(found):
    rows = drawn(probe_charts.rewards(found["scores"]))
    counts = pd.DataFrame(rows).groupby("truth")["rows"].sum()
    assert counts.to_dict() == {"answer 1 is right": 30, "answer 1 is wrong": 30}
    right = [row for row in rows if row["truth"] == "answer 1 is right" and row["low"] >= 0.5]
    assert sum(row["rows"] for row in right) == 27, "the probe errs on six rows, three of them with label 1"


def test_the_matrix_has_a_cell_for_every_pair_and_normalisation(tmp_path, found, verdict):
    cells = [
        {"probe": a, "tested_on": b, "statistics": s, **figures(value)}
        for s in ("stored", "own")
        for (a, b), value in {("p", "p"): 0.9, ("p", "q"): 0.6, ("q", "q"): 0.8, ("q", "p"): 0.3}.items()
    ]
    drawings = probe_charts.draw_all(found | {"transfer": pd.DataFrame(cells)}, table_rows.chosen_layers(verdict))
    rows = drawn(drawings["transfer"])
    assert len(rows) == 8 and {(row["probe"], row["tested_on"]) for row in rows} == set(product("pq", repeat=2))
    charts.save(drawings["transfer"], tmp_path / "transfer.png")
    assert (tmp_path / "transfer.png").read_bytes()[:4] == b"\x89PNG"


def test_prompt_sensitivity_tells_the_spread(found, verdict):
    table = pd.DataFrame(
        [{"probe": "p", "wording": "a", **figures(0.9)}, {"probe": "p", "wording": "b", **figures(0.75)}]
    )
    drawings = probe_charts.draw_all(found | {"wordings": table}, table_rows.chosen_layers(verdict))
    assert [row["wording"] for row in drawn(drawings["wordings"])] == ["a", "b"]
    assert "p 0.150" in drawings["wordings"].to_dict()["title"]["subtitle"]
