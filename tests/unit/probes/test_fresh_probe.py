"""Frozen and fresh probes on states whose truth was left in place, moved, or erased."""

import json

import fresh_probe as script
import numpy as np
import pytest
import torch
from planted import CONVENTION, labels_of, pair_states, write_split

from elkflow.common.errors import UserError
from elkflow.common.files import read_json, sha256
from elkflow.common.manifests import check_manifest
from elkflow.common.metrics import auroc
from elkflow.config.probe import ProbeSettings
from elkflow.probes import saved_probe
from elkflow.probes.contrast_pairs import ContrastPairs
from elkflow.probes.fresh_probe import frozen_and_fresh, read_off_domain
from elkflow.summary.diagnosis import classify_outcome

SETTINGS = ProbeSettings(model="m", dataset="d", wording="plain", methods=["logistic", "ccs"])
WIDTH = 16
GAIN = {"difference": 0.3, "within_noise": False}


@pytest.fixture
def probe():
    """Reads the first axis of layer 1, where `pair_states` plants the truth."""
    facts = {
        "method": "logistic",
        "layer": 1,
        "layers": 3,
        "layer_convention": CONVENTION,
        "position": "last",
        "model": {"name": "m", "hash": "untuned"},
        "wordings": ["plain"],
        "answers": ["No", "Yes"],
        "ensembling": "partial",
    }
    weight = torch.eye(WIDTH)[0]
    return saved_probe.Probe(torch.zeros(1, 2, WIDTH), torch.ones(1, 2, WIDTH), weight, torch.tensor(0.0), facts)


def splits(folder, change=lambda states: states, truth=2.0, **metadata):
    """Train and val as the tuned model's states would be, after `change`."""
    written = []
    for seed, (name, size) in enumerate((("train", 200), ("val", 120))):
        labels = labels_of(size, seed)
        states = change(pair_states(labels, seed=seed, truth=truth))
        written.append(write_split(folder, name, labels, states, metadata=metadata))
    return written


def read(written):
    return [ContrastPairs.read(split.prompts, split.states) for split in written]


def moved(states):
    """The truth on another axis and another layer: layer 1's first axis becomes layer 2's last."""
    return states.flip(0).roll(1, dims=0).flip(-1)


def test_truth_that_stayed_is_read_by_both(probe, tmp_path):
    train, val = read(splits(tmp_path))
    found = frozen_and_fresh(probe, SETTINGS, "m", train, val)
    odds = val.states([1])[0, 0].numpy()
    assert found["frozen"]["auroc"] == pytest.approx(auroc(odds[:, 1, 0] - odds[:, 0, 0], val.labels))
    for each in (found["frozen"], found["fresh"]):
        assert each["method"] == "logistic" and each["layer"] == 1
        assert each["auroc_low"] <= each["auroc"] <= each["auroc_high"]
        assert each["auroc"] > 0.95 and each["accuracy"] > 0.5
    assert classify_outcome(GAIN, None, probes=found) == "honest"


def test_truth_that_moved_is_read_by_the_fresh_probe_alone(probe, tmp_path):
    found = frozen_and_fresh(probe, SETTINGS, "m", *read(splits(tmp_path, moved)))
    assert found["frozen"]["auroc_low"] < 0.5 < found["frozen"]["auroc_high"]
    assert found["fresh"]["auroc"] > 0.95 and found["fresh"]["layer"] != 1
    lost = found["fresh"]["auroc"] - found["frozen"]["auroc"]
    assert found["lost"]["auroc"] == pytest.approx(lost) and 0 < found["lost"]["auroc_low"] < lost
    assert classify_outcome(GAIN, None, probes=found) == "obfuscated"


def test_truth_that_was_erased_is_read_by_neither(probe, tmp_path):
    noise = torch.Generator().manual_seed(3)
    train, val = read(splits(tmp_path, lambda states: torch.randn(states.shape, generator=noise)))
    found = frozen_and_fresh(probe, SETTINGS, "m", train, val)
    assert max(found[name]["auroc"] for name in ("frozen", "fresh")) < 0.65
    assert classify_outcome(GAIN, None, probes=found) != "obfuscated"


def test_the_frozen_probe_does_not_judge_another_model_of_the_same_shape(probe, tmp_path):
    found = frozen_and_fresh(probe, SETTINGS, "another", *read(splits(tmp_path)))
    assert list(found) == ["fresh"] and found["fresh"]["auroc"] > 0.95


def test_states_of_another_token_are_refused(probe, tmp_path):
    train, val = read(splits(tmp_path, position="first"))
    with pytest.raises(UserError, match="position is 'first', the probe's 'last'"):
        frozen_and_fresh(probe, SETTINGS, "m", train, val)


def test_the_fresh_probe_is_fitted_on_all_of_train_as_the_frozen_one_was(probe, tmp_path):
    train, val = read(splits(tmp_path, truth=0.5))
    whole, part = (
        frozen_and_fresh(probe, SETTINGS.model_copy(update={"refit": refit}), "m", train, val)
        for refit in (True, False)
    )
    assert whole["frozen"] == part["frozen"] and whole["fresh"] != part["fresh"]


def test_the_script_writes_figures_and_where_they_come_from(probe, tmp_path):
    train, val = splits(tmp_path)
    saved_probe.save_probe(probe, tmp_path / "probe")
    paths = [
        ("--train-prompts", train.prompts),
        ("--val-prompts", val.prompts),
        ("--train-states", train.states),
        ("--val-states", val.states),
        ("--lineage", [tmp_path / "probe/probe.json"]),
        ("--output", [tmp_path / "fresh_probe.json"]),
        ("--manifest", [tmp_path / "fresh_probe.manifest.json"]),
    ]
    arguments = ["--settings", SETTINGS.model_dump_json(), "--probe", str(tmp_path / "probe"), "--policy", "m"]
    script.main([*arguments, *(str(word) for option, values in paths for word in (option, *values))])
    found = read_json(tmp_path / "fresh_probe.json")
    assert set(found) == {"frozen", "fresh", "lost"} and np.isfinite(found["fresh"]["auroc_high"])
    manifest = check_manifest(tmp_path / "fresh_probe.manifest.json")
    (source,) = manifest["inputs"].values()
    assert source["sha256"] == sha256(tmp_path / "probe/probe.json")
    assert json.loads(SETTINGS.model_dump_json()) == manifest["settings"]


def test_a_probe_fitted_elsewhere_reads_the_states_before_and_after(probe, tmp_path):
    (tmp_path / "base").mkdir(), (tmp_path / "tuned").mkdir()
    base = read(splits(tmp_path / "base"))[1]
    tuned = read(splits(tmp_path / "tuned", lambda states: states * 5 + 3))[1]
    far = saved_probe.Probe(
        torch.full((1, 2, WIDTH), 9.0), torch.ones(1, 2, WIDTH), probe.weight, torch.tensor(4.0),
        probe.facts | {"normalisation": {"kind": "full"}},
    )  # fmt: skip
    found = read_off_domain({"elsewhere": far}, base, tuned)["elsewhere"]
    assert found["before"]["auroc"] == pytest.approx(found["after"]["auroc"]) and found["after"]["auroc"] > 0.95
    assert found["change"]["auroc"] == pytest.approx(0), "scale and offset of other states are normalised away"
    (tmp_path / "moved").mkdir()
    hidden = read(splits(tmp_path / "moved", moved))[1]
    lost = read_off_domain({"elsewhere": far}, base, hidden)["elsewhere"]
    assert lost["after"]["auroc"] < 0.7 and lost["change"]["auroc_high"] < -0.2
