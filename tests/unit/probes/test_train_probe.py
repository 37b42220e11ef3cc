"""From files of hidden states to an admitted probe."""

import numpy as np
import pandas as pd
import pytest
import torch
from planted import labels_of, made, pair_states, train, write_split
from safetensors.torch import load_file

from elkflow.common import manifests
from elkflow.common.errors import UserError
from elkflow.common.files import read_json, read_table
from elkflow.probes import saved_probe
from elkflow.probes.contrast_pairs import ContrastPairs, split_groups


def test_the_planted_layer_is_found(whole):
    _, _, probe = whole
    facts = read_json(probe / "probe.json")
    assert facts["layer"] == 1
    assert facts["metrics"]["auroc"] > 0.99 and facts["metrics"]["auroc_low"] > 0.87  # of 30 groups
    assert facts["rows"] == {"fit": 180, "selection": 60, "val": 120}
    assert facts["gate"]["passed"] is True
    assert facts["model"]["hash"] == "abc" and facts["model"]["path"] == "../../models/tiny/checkpoint"
    assert manifests.check_manifest(probe / "manifest.json")["facts"]["layer"] == 1


def test_scores_are_those_of_the_stored_formula(whole):
    """probe.safetensors alone, by the formula in `Probe`, gives the reported log-odds."""
    _, (_, val), folder = whole
    numbers, states = load_file(folder / "probe.safetensors"), load_file(val.states[0])["layers.1"]
    normal = (states - numbers["mean"][0]) / numbers["scale"][0]
    odds = (normal[:, 1] - normal[:, 0]) @ numbers["weight"] + numbers["bias"]
    table = read_table(folder / "scores.parquet").to_pandas()
    assert odds.numpy() == pytest.approx(table["log_odds"].to_numpy(), abs=1e-4)
    assert table["label"].tolist() == val.labels.tolist()


def test_the_same_seed_gives_the_same_files(whole, tmp_path):
    _, splits, probe = whole
    again = train(tmp_path, splits, methods=["logistic", "mass_mean", "lda", "ccs", "vinc", "crc"])
    for name in ("probe.safetensors", "probe.json", "layers.csv", "controls.csv"):
        assert (again / name).read_bytes() == (probe / name).read_bytes()


def test_val_labels_change_no_choice_and_no_weight(tmp_path):
    """Layer, method and weights come from train alone."""
    splits = made(tmp_path)
    first = train(tmp_path, splits, allow_weak_probe=True)
    weights = (first / "probe.safetensors").read_bytes()
    table = read_table(splits[1].prompts[0]).to_pandas()
    table["label"] = 1 - table["label"]
    table.to_parquet(splits[1].prompts[0])
    second = train(tmp_path, splits, allow_weak_probe=True)
    assert (second / "probe.safetensors").read_bytes() == weights
    assert read_json(second / "probe.json")["metrics"]["auroc"] < 0.05


def test_selection_labels_change_no_weight(tmp_path):
    """Only the fit part's labels reach the directions."""
    splits = made(tmp_path)
    first = train(tmp_path, splits, layers=[1], methods=["logistic"], refit=False)
    weights = (first / "probe.safetensors").read_bytes()
    table = read_table(splits[0].prompts[0]).to_pandas()
    _, selection = split_groups(table["group"].to_numpy(), 0.25, 0)
    table.loc[selection, "label"] = 1 - table.loc[selection, "label"]
    table.to_parquet(splits[0].prompts[0])
    second = train(tmp_path, splits, layers=[1], methods=["logistic"], refit=False, allow_weak_probe=True)
    assert (second / "probe.safetensors").read_bytes() == weights


def test_the_chosen_layer_is_fitted_again_on_all_of_train(tmp_path):
    """More rows to fit on; the layer and the metrics it was selected by do not change."""
    splits = made(tmp_path, sizes=(120, 400), truth=0.5, width=32)
    options = {"methods": ["lda"], "selection": 0.5, "allow_weak_probe": True}
    first, second = (
        read_json(train(tmp_path, splits, refit=again, **options) / "probe.json") for again in (False, True)
    )
    assert first["layer"] == second["layer"]
    assert first["selection_metrics"] == second["selection_metrics"]
    assert second["metrics"]["auroc"] > first["metrics"]["auroc"] + 0.01
    assert (first["fitted_on"], second["fitted_on"]) == ("fit part of train", "all of train")


def test_the_models_own_answers_can_give_the_sign(tmp_path):
    """With `sign: model`, a model with inverted answers inverts an unsupervised probe, whatever the labels."""
    found = {}
    for name, direction in (("right", 1.0), ("wrong", -1.0)):
        folder = tmp_path / name
        splits = []
        for seed, split in enumerate(("train", "val")):
            labels = labels_of(120, seed)
            odds = direction * (2 * labels - 1.0)
            splits.append(write_split(folder, split, labels, pair_states(labels, seed=seed), zero_shot=odds))
        probe = train(folder, splits, methods=["ccs"], layers=[1], sign="model", allow_weak_probe=True)
        found[name] = read_json(probe / "probe.json")
    assert found["right"]["metrics"]["auroc"] > 0.95
    assert found["wrong"]["metrics"]["auroc"] < 0.05
    assert found["right"]["sign"] == "by the model's own zero-shot answers"


@pytest.mark.parametrize("ensembling", ["none", "partial", "full"])
def test_wordings_are_fitted_together(tmp_path, ensembling):
    splits = made(tmp_path, wordings=("plain", "other"), truth=0.6)
    options = {"variants": ["other"], "methods": ["logistic", "vinc"], "allow_weak_probe": True}
    probe = train(tmp_path, splits, ensembling=ensembling, **options)
    numbers, facts = load_file(probe / "probe.safetensors"), read_json(probe / "probe.json")
    assert numbers["mean"].shape == (2, 2, 16)
    assert not torch.equal(numbers["mean"][0], numbers["mean"][1])
    assert facts["wordings"] == ["plain", "other"]
    assert pd.read_csv(probe / "wordings.csv")["wording"].tolist() == ["plain", "other"]
    loaded = saved_probe.load_probe(probe)
    assert loaded.wordings == (["plain", "other"] if ensembling == "full" else ["plain"])
    read = len(loaded.wordings)
    pairs = ContrastPairs.read(splits[1].prompts[:read], splits[1].states[:read])
    odds = loaded.log_odds(pairs.states([facts["layer"]])[0])
    assert odds.numpy() == pytest.approx(read_table(probe / "scores.parquet")["log_odds"].to_numpy(), abs=1e-4)


def test_averaging_wordings_judges_better_than_one(tmp_path):
    splits = made(tmp_path, wordings=("a", "b", "c"), truth=0.4, sizes=(240, 400))
    options = {"wording": "a", "variants": ["b", "c"], "methods": ["logistic"], "allow_weak_probe": True}
    aurocs = {
        kind: read_json(train(tmp_path, splits, ensembling=kind, **options) / "probe.json")["metrics"]["auroc"]
        for kind in ("none", "partial", "full")
    }
    assert aurocs["none"] < aurocs["partial"] < aurocs["full"]


def test_calibration_shrinks_overconfident_rewards(tmp_path):
    splits = made(tmp_path, truth=0.3, noise=1.5, sizes=(120, 400), width=48)
    options = {"methods": ["logistic"], "logistic": {"l2": [0.001]}, "allow_weak_probe": True, "selection": 0.4}
    ece = {}
    for calibrate in (False, True):
        probe = train(tmp_path, splits, calibrate=calibrate, **options)
        table = read_table(probe / "scores.parquet").to_pandas()
        probability = 1 / (1 + np.exp(-table["log_odds"]))
        ece[calibrate] = ((probability - table["label"]) ** 2).mean()
        slope = read_json(probe / "probe.json")["calibration"]
        assert (slope is None) == (not calibrate)
    assert ece[True] < ece[False]


def test_a_layer_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no layer 9; the model has 0 to 2"):
        train(tmp_path, made(tmp_path), layers=[1, 9])
