"""From contrast pairs to an admitted probe: fit, select, compare with controls, and save."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from elkflow.common.cli import timed
from elkflow.common.errors import UserError
from elkflow.common.files import number, write_table, write_text
from elkflow.config.probe import ProbeSettings
from elkflow.probes import saved_probe
from elkflow.probes.arms import replace_direction
from elkflow.probes.contrast_pairs import ContrastPairs
from elkflow.probes.controls import chance_controls, text_controls, untrained_control, zero_shot_control
from elkflow.probes.fitting import ProbeData, fit_all, fit_platt, refit, reward_log_odds
from elkflow.probes.gate import admit, control_table, format_controls
from elkflow.probes.selection import choose_layers
from elkflow.probes.tables import (
    METRIC_NAMES,
    count_groups,
    layer_table,
    member_table,
    method_table,
    score_table,
    sign_source,
    wording_table,
)

logger = logging.getLogger("elkflow")

OUTPUT_FILES = (
    "probe.safetensors",
    "probe.json",
    "layers.csv",
    "methods.csv",
    "controls.csv",
    "wordings.csv",
    "datasets.csv",
    "scores.parquet",
)


def train_probe(
    settings: ProbeSettings,
    train: ContrastPairs,
    val: ContrastPairs,
    rows: tuple[pd.DataFrame, pd.DataFrame],
    origin: Mapping[str, Any],
    folder: Path,
    untrained: tuple[ContrastPairs, ContrastPairs] | None = None,
) -> dict[str, Any]:
    """Fit, select and report a probe; write `OUTPUT_FILES` into `folder`; return facts for the manifest.

    Directions and normalisation are fitted on the fit part of train; layer, method and (optional) calibration are
    determined on its selection part; all reported metrics are on val. With `refit` each method is then fitted on all of
    train at its selected layer; layers.csv describes the first fits, all other files the final ones.

    Args:
        rows: source rows of train and val, for the controls that read text.
        origin: prompt format and how the model was loaded (see `probe_origin`), to score outside the workflow.
        untrained: the same rows of train and val read by an untrained model, for that control.

    Raises:
        UserError: the inputs do not match, or the probe does not lead its controls (see `gate.admit`).
    """
    parts = ProbeData.of(train, val, settings)
    if untrained is not None and (untrained[0].ids, untrained[1].ids) != (train.ids, val.ids):
        raise UserError(f"{untrained[0].files[0]}: its rows are not those that the probe is fitted on")
    with timed(f"{', '.join(settings.methods)} on {len(parts.layers)} layers, {len(parts.fit)} pairs"):
        fitted, norm = fit_all(parts, settings)
    method, best = choose_layers(fitted, parts, settings)
    chosen, at = fitted[method], best[method]
    mean, scale = norm.mean[at], norm.scale[at]
    with timed("intervals"):
        layers = layer_table(fitted, parts, settings)
    if again := settings.refit and not settings.calibrate:
        with timed("chosen layers on all of train"):
            norms = {name: refit(each, best[name], parts, settings) for name, each in fitted.items()}
            mean, scale = norms[method].mean[0], norms[method].scale[0]
    replace_direction(chosen, at, parts.fitted_on_all() if again else parts, settings)
    methods = method_table(fitted, best, parts, settings)
    odds = reward_log_odds(chosen.val[at], settings.ensembling)
    slope, offset = calibration(chosen.selection[at], parts, settings) if settings.calibrate else (1.0, 0.0)
    with timed("controls"):
        by_chance, chance_layers = chance_controls(parts, chosen, settings)
        controls = [*text_controls(parts, *rows), *zero_shot_control(parts, settings.ensembling), *by_chance]
        if untrained is not None:
            control, by_layer = untrained_control(*untrained, chosen.method, settings)
            controls.append(control)
            chance_layers = pd.concat([chance_layers, by_layer])
        table = control_table(controls, odds, val.labels, val.groups, settings)
    logger.info("%s, layer %d, selected on the selection part:\n%s", method, chosen.layers[at], format_controls(table))
    passed = admit(table, method, chosen.layers[at], settings)

    own = next(row for row in methods.to_dict("records") if row["method"] == method)
    part = "all of train" if again else "fit part of train"
    facts: dict[str, Any] = {
        "method": method,
        "layer": chosen.layers[at],
        "layers": train.layers,
        "layer_convention": train.metadata[0].get("layers"),
        "position": train.metadata[0].get("position"),
        "model": {
            "name": settings.model,
            "hash": train.metadata[0].get("model"),
            "path": f"../../models/{settings.model}/checkpoint",
            "loading": origin["loading"],
        },
        "asked": origin["asked"],
        "dataset": settings.dataset,
        "wordings": settings.wordings(),
        "answers": train.answers,
        "ensembling": settings.ensembling,
        "normalisation": {"kind": settings.normalise, "of": f"{part}, per answer and wording"},
        "sign": sign_source(method, settings),
        "calibration": {"slope": slope, "offset": offset, "of": "selection part"} if settings.calibrate else None,
        "reward": "sigmoid(log-odds) for answer 1, its complement for answer 0",
        "found": {name: np.asarray(numbers[at]).item() for name, numbers in chosen.facts.items()},
        "fitted_on": part,
        "arm": settings.arm,
        "rows": {"fit": len(parts.fit), "selection": len(parts.selection), "val": len(val)},
        "groups": {
            "fit": count_groups(train, parts.fit),
            "selection": count_groups(train, parts.selection),
            "val": count_groups(val),
        },
        "metrics": {name: number(own[name]) for name in methods.columns if name.startswith(METRIC_NAMES)},
        "selection_metrics": {
            name.removeprefix("selection_"): number(own[name])
            for name in methods.columns
            if name.startswith("selection_")
        },
        "gate": {"passed": passed, "margin": settings.gate.margin, "allowed_anyway": not passed},
    }
    probe = saved_probe.Probe(mean, scale, slope * chosen.weight[at], slope * chosen.bias[at] + offset, facts)
    saved_probe.save_probe(probe, folder)
    write_text(folder / "layers.csv", pd.concat([layers, chance_layers]).to_csv(index=False))
    write_text(folder / "methods.csv", methods.to_csv(index=False))
    write_text(folder / "controls.csv", table.to_csv(index=False))
    write_text(folder / "wordings.csv", wording_table(chosen, at, parts, settings).to_csv(index=False))
    members = member_table(settings.dataset, odds, parts)
    write_text(folder / "datasets.csv", members.to_csv(index=False))
    write_table(score_table(fitted, best, slope * odds + offset, parts, settings), folder / "scores.parquet")
    return {"method": method, "layer": chosen.layers[at], "admitted": passed, "auroc": facts["metrics"]["auroc"]}


def calibration(members: NDArray, parts: ProbeData, settings: ProbeSettings) -> tuple[float, float]:
    """Platt's slope and offset for the reward's log-odds, on the selection part."""
    return fit_platt(reward_log_odds(members, settings.ensembling), parts.train.labels[parts.selection])
