"""A probe in its folder: damaged files, and states of another kind."""

import json

import pytest
import torch
from planted import labels_of, pair_states, score, write_split
from safetensors.torch import load_file, save_file

from elkflow.common.errors import UserError
from elkflow.common.files import read_json
from elkflow.probes import saved_probe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "other"}, "states of another model"),
        ({"position": "mean"}, "position is 'mean', the probe's 'last'"),
        ({"layers": "counted otherwise"}, "layer convention is 'counted otherwise'"),
    ],
)
def test_states_of_another_kind_are_refused(whole, tmp_path, change, message):
    labels = labels_of(20)
    split = write_split(tmp_path, "ppo", labels, pair_states(labels), metadata=change)
    with pytest.raises(UserError, match=message):
        score(tmp_path, whole[2], split)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2, but this version reads format 1"),
        ({"layer": None}, "'layer' is missing"),
        ({"wordings": ["plain", "other"]}, "shapes do not match each other"),
    ],
)
def test_files_that_do_not_match_are_refused(whole, tmp_path, change, message):
    facts = read_json(whole[2] / "probe.json") | change
    facts = {key: value for key, value in facts.items() if value is not None or key == "calibration"}
    (tmp_path / "probe.json").write_text(json.dumps(facts))
    (tmp_path / "probe.safetensors").write_bytes((whole[2] / "probe.safetensors").read_bytes())
    with pytest.raises(UserError, match=message):
        saved_probe.load_probe(tmp_path)


def test_a_damaged_probe_is_named(whole, tmp_path):
    (tmp_path / "probe.json").write_bytes((whole[2] / "probe.json").read_bytes())
    with pytest.raises(UserError, match=r"probe\.safetensors: no such file"):
        saved_probe.load_probe(tmp_path)
    (tmp_path / "probe.safetensors").write_bytes(b"\x80\x04pickled")
    with pytest.raises(UserError, match=r"probe\.safetensors: not a readable probe"):
        saved_probe.load_probe(tmp_path)
    numbers = load_file(whole[2] / "probe.safetensors")
    numbers["bias"] = torch.tensor(float("inf"))
    save_file(numbers, tmp_path / "probe.safetensors")
    with pytest.raises(UserError, match="has values that are not finite"):
        saved_probe.load_probe(tmp_path)
