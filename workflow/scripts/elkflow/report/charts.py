"""Charts of the summary: each function turns a table into a chart, for a PNG file and for the report's pages."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from elkflow.common.files import atomic

BASE, TUNED, REWARD, GOLD = "#8c8c8c", "#0072b2", "#e69f00", "#009e73"  # Okabe and Ito: safe for colour-blind readers
WIDTH, HEIGHT = 620, 300
HEALTH = {
    "kl_k3": "KL from the reference (nats)",
    "entropy": "entropy (nats)",
    "valid": "fraction of allowed answers",
    "yes_rate": "fraction of Yes",
}
OUTCOME_COLOURS = {
    "honest": GOLD,
    "unchanged": BASE,
    "overfits the probe": "#d55e00",
    "obfuscated": "#cc79a7",
    "collapsed": "#222222",
}
Chart = Any


def save(chart: Chart, png: Path) -> None:
    """Write a chart as PNG."""
    with atomic(png) as temporary:
        styled(chart).save(str(temporary), format="png", scale_factor=2)


def styled(chart: Chart) -> Chart:
    """The look that all charts share."""
    return (
        chart.configure(font="Helvetica, Arial, sans-serif", background="white", padding=12)
        .configure_axis(
            labelFontSize=12, titleFontSize=13, titleFontWeight="normal", gridColor="#eeeeee", labelLimit=300
        )
        .configure_legend(labelFontSize=12, titleFontSize=12, orient="top", title=None, labelLimit=400)
        .configure_header(labelFontSize=13, titleFontSize=13, labelFontWeight="bold", title=None, labelLimit=500)
        .configure_title(fontSize=15, anchor="start", fontWeight="bold", subtitleFontSize=12, subtitleColor="#555555")
        .configure_view(stroke=None)
    )


def before_after(comparison: pd.DataFrame) -> Chart:
    """Accuracy of base and tuned model on every task, with 95 % intervals; one panel per run and seed."""
    proportions = comparison[comparison[["base", "tuned"]].le(1).all(axis=1) & comparison["higher_is_better"]]
    parts = []
    for model in ("base", "tuned"):
        columns = {model: "value", f"{model}_low": "low", f"{model}_high": "high"}
        part = proportions[["run", "seed", "task", "n", *columns]].rename(columns=columns)
        parts.append(part.assign(model=model))
    table = pd.concat(parts)
    table["panel"] = table["run"] + ", seed " + table["seed"].astype(str)
    tasks = list(dict.fromkeys(proportions["task"]))
    x = alt.X("task:N", sort=tasks, title=None, axis=alt.Axis(labelAngle=0, labelLimit=140))
    offset = alt.XOffset("model:N", sort=["base", "tuned"])
    bars = (
        alt.Chart()
        .mark_bar()
        .encode(
            x=x,
            xOffset=offset,
            y=alt.Y("value:Q", title="accuracy", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])),
            color=alt.Color("model:N", scale=alt.Scale(domain=["base", "tuned"], range=[BASE, TUNED])),
            tooltip=[
                "panel",
                "task",
                "model",
                "n",
                *(alt.Tooltip(f"{c}:Q", format=".1%") for c in ("value", "low", "high")),
            ],
        )
    )
    intervals = alt.Chart().mark_rule(strokeWidth=1.5).encode(x=x, xOffset=offset, y="low:Q", y2="high:Q")
    text = (
        alt.Chart()
        .mark_text(dy=-6, dx=0, fontSize=11)
        .encode(x=x, xOffset=offset, y="high:Q", text=alt.Text("value:Q", format=".0%"))
    )
    width = max(200, 110 * len(tasks))
    return (
        alt.layer(bars, intervals, text, data=table)
        .properties(width=width, height=HEIGHT)
        .facet(alt.Facet("panel:N", title=None), columns=max(1, 900 // width))
        .properties(title="Before and after training")
    )


def training_curves(steps: pd.DataFrame) -> Chart:
    """Reward and gold accuracy over training steps, one panel per run and seed.

    Args:
        steps: columns run, seed, step, reward, gold_of_allowed.
    """
    names = {
        "reward": "probe's reward (optimised)",
        "gold_of_allowed": "gold accuracy of allowed answers (never seen)",
    }
    table = steps[["run", "seed", "step", *names]].melt(["run", "seed", "step"], None, "series", "value").dropna()
    table["series"] = table["series"].map(names)
    table["panel"] = table["run"] + ", seed " + table["seed"].astype(str)
    panels = table["panel"].nunique()
    return (
        alt.Chart(table)
        .mark_line(point=alt.OverlayMarkDef(size=18), strokeWidth=2)
        .encode(
            x=alt.X("step:Q", title="step", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("value:Q", title="mean over the step's prompts", scale=alt.Scale(zero=False)),
            color=alt.Color("series:N", scale=alt.Scale(domain=list(names.values()), range=[REWARD, GOLD])),
            tooltip=["panel", "step", "series", alt.Tooltip("value:Q", format=".3f")],
        )
        .properties(width=WIDTH if panels == 1 else WIDTH // 2, height=HEIGHT if panels == 1 else HEIGHT * 2 // 3)
        .facet(alt.Facet("panel:N", title=None), columns=1 if panels == 1 else 3)
        .properties(title="What training optimises, and what it is meant to improve")
    )


def training_health(steps: pd.DataFrame) -> Chart:
    """KL, entropy and answer fractions over training: one panel each, one line per run and seed.

    Args:
        steps: columns run, seed, step, and those of `HEALTH`.
    """
    signs = [name for name in HEALTH if name in steps]
    table = steps[["run", "seed", "step", *signs]].melt(["run", "seed", "step"], None, "sign", "value").dropna()
    table["training"] = table["run"] + ", seed " + table["seed"].astype(str)
    several = table["training"].nunique() > 1
    panels = []
    for sign in signs:
        scale = alt.Scale(domain=[0, 1]) if sign in ("valid", "yes_rate") else alt.Scale(zero=True)
        colour = alt.Color("training:N", legend=alt.Legend() if several else None) if several else alt.value(TUNED)
        panels.append(
            alt.Chart(table[table["sign"] == sign])
            .mark_line(strokeWidth=1.5)
            .encode(
                x=alt.X("step:Q", title="step", axis=alt.Axis(tickMinStep=1)),
                y=alt.Y("value:Q", title=HEALTH[sign], scale=scale),
                color=colour,
                tooltip=["training", "step", alt.Tooltip("value:Q", format=".4f")],
            )
            .properties(width=WIDTH // 2 - 40, height=HEIGHT // 2)
        )
    return alt.concat(*panels, columns=2)


def sweep(rows: pd.DataFrame, axes: Mapping[str, pd.DataFrame]) -> Chart:
    """Every training of a sweep and, below, the outcomes along each swept number.

    Args:
        rows: see `gains`.
        axes: name of each swept number to the rows for `outcomes`.
    """
    return alt.vconcat(gains(rows), *(outcomes(points, name) for name, points in axes.items()), spacing=30)


def gains(rows: pd.DataFrame) -> Chart:
    """Gain on the wording trained on, with its interval, coloured by outcome: one line per training.

    Args:
        rows: columns run, seed, outcome, training_difference, training_ci_low, training_ci_high.
    """
    y = alt.Y("run:N", title=None, sort=list(dict.fromkeys(rows["run"])), axis=alt.Axis(labelLimit=420))
    base = alt.Chart(rows).encode(y=y, yOffset=alt.YOffset("seed:N"), color=_by_outcome(rows))
    shown = [alt.Tooltip(f"training_{name}:Q", format="+.1%") for name in ("difference", "ci_low", "ci_high")]
    dots = base.mark_point(filled=True, size=70, opacity=1).encode(
        x=alt.X("training_difference:Q", title="gain on the wording trained on", axis=alt.Axis(format="+%")),
        tooltip=["run", "seed", "outcome", *shown],
    )
    intervals = base.mark_rule(strokeWidth=2).encode(x="training_ci_low:Q", x2="training_ci_high:Q")
    zero = alt.Chart().mark_rule(color="#999999", strokeDash=[4, 4]).encode(x=alt.datum(0))
    return (
        alt.layer(zero, intervals, dots)
        .properties(width=WIDTH, height=alt.Step(18))
        .properties(title="Every training of the sweep")
    )


def outcomes(rows: pd.DataFrame, axis: str) -> Chart:
    """Along a swept number: agreement of the tuned model with probe and truth, AUROC on its states, and the outcome.

    Args:
        rows: columns run, seed, value (of the swept number), outcome, agrees_truth, agrees_probe and, where a fresh
            probe was fitted, frozen_auroc and fresh_auroc.
    """
    agreement = {"agrees_truth": "with the truth", "agrees_probe": "with the probe"}
    panels = [_along(rows, axis, agreement, "agreement of the tuned model's answers", "%")]
    aurocs = {"fresh_auroc": "fresh probe", "frozen_auroc": "frozen probe"}
    if {*aurocs} <= {*rows.columns}:
        panels.append(_along(rows, axis, aurocs, "AUROC on the tuned model's states", ".3f"))
    return alt.hconcat(*panels, spacing=40).resolve_scale(strokeDash="independent", shape="independent")


def _along(rows: pd.DataFrame, axis: str, names: dict[str, str], title: str, form: str) -> Chart:
    """Two curves over a swept number, with a point per training in the colour of its outcome."""
    keys = ["run", "seed", "value", "outcome"]
    table = rows[[*keys, *names]].melt(keys, None, "measure", "y").dropna()
    table["measure"] = table["measure"].map(names)
    values = sorted(rows["value"].unique())
    positive = [value for value in values if value > 0]
    scale = alt.Scale()
    if positive and max(values) / positive[0] > 10 and values[0] >= 0:
        scale = alt.Scale(type="log") if values[0] > 0 else alt.Scale(type="symlog", constant=positive[0])
    ticks = alt.Axis(values=values) if len(values) <= 10 else alt.Axis()
    x = alt.X("value:Q", title=axis, scale=scale, axis=ticks)
    y = alt.Y("y:Q", title=title, axis=alt.Axis(format=form), scale=alt.Scale(zero=False))
    domain = list(names.values())
    dash = alt.StrokeDash("measure:N", scale=alt.Scale(domain=domain, range=[[1, 0], [5, 4]]))
    shape = alt.Shape("measure:N", scale=alt.Scale(domain=domain, range=["circle", "diamond"]))
    lines = alt.Chart(table).mark_line(color="#888888").encode(x=x, y=alt.Y("mean(y):Q"), strokeDash=dash)
    tooltip = ["run", "seed", "outcome", "measure", alt.Tooltip("y:Q", format=".3f")]
    dots = (
        alt.Chart(table)
        .mark_point(filled=True, size=90, opacity=1)
        .encode(x=x, y=y, color=_by_outcome(rows), shape=shape, tooltip=tooltip)
    )
    return alt.layer(lines, dots).properties(width=WIDTH // 2, height=HEIGHT)


def _by_outcome(rows: pd.DataFrame) -> alt.Color:
    seen = [name for name in OUTCOME_COLOURS if name in set(rows["outcome"])]
    return alt.Color("outcome:N", scale=alt.Scale(domain=seen, range=[OUTCOME_COLOURS[name] for name in seen]))
