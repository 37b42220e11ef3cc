"""Charts of probes: AUROC by layer, calibration, rewards, and how both carry over to other wordings and datasets."""

from collections.abc import Callable, Mapping
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from scipy.special import expit

from elkflow.common.inference import share
from elkflow.report.charts import BASE, GOLD, HEIGHT, REWARD, TUNED, WIDTH, Chart

METHODS = {
    "logistic": TUNED,
    "mass_mean": "#56b4e9",
    "lda": "#d55e00",
    "ccs": REWARD,
    "vinc": GOLD,
    "crc": "#cc79a7",
    "untrained_model": "#222222",
    "random_directions": BASE,
    "shuffled_labels": "#b8a878",
}
"""Colours of the methods, then of the controls that have layers."""
BINS = 10
AUROC = ("auroc", "auroc_low", "auroc_high")
AUROC_TOOLTIP = [alt.Tooltip(f"{name}:Q", format=".3f") for name in AUROC]
TITLES = {
    "layers": "AUROC by layer",
    "reliability": "Reliability",
    "rewards": "Rewards of right and wrong answers",
    "wordings": "Wordings",
    "transfer": "Transfer",
}
"""Every chart, in the order of the report."""


def draw_all(tables: Mapping[str, pd.DataFrame], chosen: dict[str, tuple[str, int]]) -> dict[str, Chart]:
    """The charts that have something to show, by name.

    Args:
        tables: see `results.read_probe_tables`.
        chosen: see `layers`.
    """
    drawn = {
        "layers": layers(tables["layers"], chosen, tables["controls"]),
        "reliability": reliability(reliability_table(tables["scores"])),
        "rewards": rewards(tables["scores"]),
    }
    several = tables["wordings"][tables["wordings"].duplicated("probe", keep=False)]
    if len(several):
        drawn["wordings"] = wordings(several)
    if len(tables["transfer"]):
        drawn["transfer"] = transfer(tables["transfer"])
    return drawn


def layers(table: pd.DataFrame, chosen: dict[str, tuple[str, int]], controls: pd.DataFrame) -> Chart:
    """AUROC by layer with 95 % bands: one row per probe, one line per method or control; the chosen layer is circled.

    Controls that read no hidden states have no layer and are drawn beside it on the same scale.

    Args:
        table: columns probe, method, layer, auroc, auroc_low, auroc_high, of one part of the data.
        chosen: probe to its (method, layer).
        controls: columns probe, control, auroc, auroc_low, auroc_high.
    """
    marks = pd.DataFrame([{"probe": name, "method": m, "layer": layer} for name, (m, layer) in chosen.items()])
    table = table.merge(marks.assign(chosen=True), how="left", on=["probe", "method", "layer"])
    table = table[["probe", "method", "layer", *AUROC]].assign(chosen=table["chosen"].notna())
    seen = [name for name in METHODS if name in set(table["method"])]
    colour = alt.Color("method:N", scale=alt.Scale(domain=seen, range=[METHODS[name] for name in seen]))
    others = controls[~controls["control"].isin(METHODS)]
    others = others[["probe", "control", *AUROC]]
    low = min(0.4, table["auroc_low"].min(), others["auroc_low"].min())
    scale = alt.Scale(domain=[low, 1.0], zero=False)
    y, ends = alt.Y("auroc:Q", title="AUROC on val", scale=scale), alt.Y("auroc_low:Q", title="", scale=scale)
    chance = alt.Chart(pd.DataFrame({"y": [0.5]})).mark_rule(strokeDash=[4, 4], color="#999999").encode(y="y:Q")
    rows = []
    for probe in chosen:
        base = alt.Chart(table[table["probe"] == probe]).encode(
            x=alt.X("layer:Q", title="layer (0: embeddings)", axis=alt.Axis(tickMinStep=1))
        )
        band = base.mark_area(opacity=0.2).encode(y=ends, y2="auroc_high:Q", color=colour)
        line = base.mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=15)).encode(
            y=y, color=colour, tooltip=["probe", "method", "layer", *AUROC_TOOLTIP]
        )
        mark = (
            base.transform_filter("datum.chosen")
            .mark_point(size=140, filled=False, strokeWidth=2.5, color="black")
            .encode(y="auroc:Q")
        )
        beside = alt.Chart(others[others["probe"] == probe]).encode(
            x=alt.X("control:N", title=None, sort=None, axis=alt.Axis(labelAngle=-40))
        )
        bare = y.title(None).axis(labels=False, ticks=False, domain=False)
        dots = beside.mark_point(filled=True, size=60, color="#444444", opacity=1).encode(
            y=bare, tooltip=["control", *AUROC_TOOLTIP]
        )
        ranges = beside.mark_rule(color="#444444", strokeWidth=2).encode(y=ends, y2="auroc_high:Q")
        rows.append(
            alt.hconcat(
                alt.layer(chance, band, line, mark).properties(width=WIDTH - 120, height=HEIGHT, title=probe),
                alt.layer(chance, ranges, dots).properties(width=alt.Step(32), height=HEIGHT),
                spacing=0,
            )
        )
    return alt.vconcat(*rows).properties(
        title=alt.TitleParams("Where in the model the truth can be read", subtitle="circle: the chosen layer")
    )


def reliability_table(scores: pd.DataFrame) -> pd.DataFrame:
    """How often answer 1 is right where the probe gives it about p: one row per non-empty bin of p.

    Args:
        scores: columns probe, log_odds, label, group; of val rows.

    Returns:
        Columns probe, predicted (mean p in the bin), share (fraction of label 1) with low and high, rows.
    """
    found = []
    for probe, table in scores.groupby("probe", sort=False):
        p = expit(table["log_odds"].to_numpy(dtype=float))
        slot = np.minimum((p * BINS).astype(int), BINS - 1)
        for number in np.unique(slot):
            inside, labels = slot == number, table["label"].to_numpy(dtype=float)[slot == number]
            right, low, high, _ = share(labels, table["group"].to_numpy()[inside])
            row = {"probe": probe, "predicted": p[inside].mean(), "share": right, "low": low, "high": high}
            found.append(row | {"rows": len(labels)})
    return pd.DataFrame(found)


def reliability(table: pd.DataFrame) -> Chart:
    """Reliability diagram of each probe: on the diagonal, answers with a reward of 0.8 are right in 80 % of cases.

    Args:
        table: see `reliability_table`.
    """
    x = alt.X("predicted:Q", title="the probe's probability of answer 1", scale=alt.Scale(domain=[0, 1]))
    title = "fraction of rows where it is right"
    base = alt.Chart(table).encode(x=x)
    numbers = [alt.Tooltip(f"{name}:Q", format=".3f") for name in ("predicted", "share", "low", "high")]
    dots = base.mark_point(filled=True, opacity=1, color=REWARD).encode(
        y=alt.Y("share:Q", title=title, scale=alt.Scale(domain=[0, 1])),
        size=alt.Size("rows:Q", title="rows", scale=alt.Scale(range=[30, 300])),
        tooltip=["probe", "rows", *numbers],
    )
    line = base.mark_line(color=REWARD, strokeWidth=1.5).encode(y=alt.Y("share:Q", title=title))
    ranges = base.mark_rule(color=REWARD, strokeWidth=2).encode(y=alt.Y("low:Q", title=title), y2="high:Q")
    ends = alt.Chart(pd.DataFrame({"p": [0.0, 1.0]}))
    diagonal = ends.mark_line(strokeDash=[4, 4], color="#999999").encode(x=alt.X("p:Q", title=""), y="p:Q")
    return _panel_per_probe(
        table,
        lambda one: alt.layer(diagonal, *(part.transform_filter(one) for part in (ranges, line, dots))),
        HEIGHT,
        "Are the probe's probabilities calibrated?",
        "dashed: perfectly calibrated; bars: 95 % intervals (Wilson, by groups)",
    )


def rewards(scores: pd.DataFrame) -> Chart:
    """Histogram of each probe's reward of answer 1, split by whether that answer is right.

    Args:
        scores: columns probe, log_odds, label; of val rows.
    """
    names = {1: "answer 1 is right", 0: "answer 1 is wrong"}
    slot = np.minimum((expit(scores["log_odds"].to_numpy(dtype=float)) * 20).astype(int), 19)
    table = scores.assign(low=slot / 20, high=(slot + 1) / 20, truth=scores["label"].map(names))
    table = table.groupby(["probe", "truth", "low", "high"], sort=False).size().rename("rows").reset_index()
    bars = (
        alt.Chart(table)
        .mark_rect(opacity=0.6)
        .encode(
            x=alt.X("low:Q", title="reward of answer 1", scale=alt.Scale(domain=[0, 1])),
            x2="high:Q",
            y=alt.Y("rows:Q", title="val rows"),
            y2=alt.datum(0),
            color=alt.Color("truth:N", scale=alt.Scale(domain=list(names.values()), range=[GOLD, "#d55e00"])),
            tooltip=["probe", "truth", "rows", "low", "high"],
        )
    )
    return _panel_per_probe(table, bars.transform_filter, HEIGHT * 2 // 3, "Rewards of right and wrong answers")


def transfer(table: pd.DataFrame) -> Chart:
    """Transfer matrix: AUROC of each probe (row) on the val rows of others (column), under both normalisations.

    Args:
        table: columns probe, tested_on, statistics, auroc, auroc_low, auroc_high.
    """
    names = {"stored": "the probe's normalisation, as for a reward model", "own": "normalised on the target"}
    table = table[["probe", "tested_on", *AUROC]].assign(statistics=table["statistics"].map(names))
    order = list(dict.fromkeys([*table["probe"], *table["tested_on"]]))
    panels = []
    for name in names.values():
        base = alt.Chart(table[table["statistics"] == name]).encode(
            x=alt.X("tested_on:N", sort=order, title="tested on", axis=alt.Axis(labelAngle=-30)),
            y=alt.Y("probe:N", sort=order, title="trained on"),
        )
        colour = alt.Color(
            "auroc:Q", title="AUROC", scale=alt.Scale(domain=[0, 0.5, 1], range=["#d55e00", "#f7f7f7", TUNED])
        )
        cells = base.mark_rect().encode(color=colour, tooltip=["probe", "tested_on", *AUROC_TOOLTIP])
        strong = alt.condition("abs(datum.auroc - 0.5) > 0.3", alt.value("white"), alt.value("black"))
        text = base.mark_text(fontSize=13).encode(text=alt.Text("auroc:Q", format=".2f"), color=strong)
        panels.append(alt.layer(cells, text).properties(width=alt.Step(90), height=alt.Step(50), title=name))
    return alt.hconcat(*panels).properties(
        title="Does the probe read truth, or its own dataset? AUROC on other val rows"
    )


def wordings(table: pd.DataFrame) -> Chart:
    """Prompt sensitivity: AUROC of each probe under each of its wordings, with the spread in the subtitle.

    Args:
        table: columns probe, wording, auroc, auroc_low, auroc_high.
    """
    aurocs = table.groupby("probe", sort=False)["auroc"]
    spread = ", ".join(f"{probe} {gap:.3f}" for probe, gap in (aurocs.max() - aurocs.min()).items())
    base = alt.Chart(table[["probe", "wording", *AUROC]]).encode(
        y=alt.Y("wording:N", title=None, sort=None, axis=alt.Axis(labelLimit=300)), yOffset="probe:N"
    )
    colour = alt.Color("probe:N") if table["probe"].nunique() > 1 else alt.value(TUNED)
    dots = base.mark_point(filled=True, size=70).encode(
        x=alt.X("auroc:Q", title="AUROC on val", scale=alt.Scale(zero=False)),
        color=colour,
        tooltip=["probe", "wording", *AUROC_TOOLTIP],
    )
    ranges = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("auroc_low:Q", title="AUROC on val"), x2="auroc_high:Q", color=colour
    )
    title = alt.TitleParams("How much the wording matters", subtitle=f"largest minus smallest AUROC: {spread}")
    return alt.layer(ranges, dots).properties(width=WIDTH, height=alt.Step(34), title=title)


def _panel_per_probe(
    table: pd.DataFrame, panel: Callable[[Any], Chart], height: int, title: str, subtitle: str = ""
) -> Chart:
    """Panels side by side, one per probe; `panel` draws one from a filter."""
    panels = [
        panel(alt.FieldEqualPredicate(field="probe", equal=probe)).properties(width=height, height=height, title=probe)
        for probe in dict.fromkeys(table["probe"])
    ]
    return alt.concat(*panels, columns=3).properties(title=alt.TitleParams(title, subtitle=subtitle))
