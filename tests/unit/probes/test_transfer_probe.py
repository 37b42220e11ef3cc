"""A probe tested on the states of other datasets."""

import json

import pandas as pd
import pytest
import transfer_probe
from planted import BASE, labels_of, pair_states, write_split

from elkflow.common import manifests
from elkflow.common.errors import UserError
from elkflow.common.files import read_json


def test_transfer_distinguishes_a_shared_direction_from_a_private_one(whole, tmp_path):
    """Truth on another axis does not transfer; a shift of all states is removed by the target's own mean."""
    _, (_, val), probe = whole
    labels = labels_of(120, 9)
    elsewhere = write_split(tmp_path / "elsewhere", "val", labels, pair_states(labels, seed=9).roll(5, dims=-1))
    moved = pair_states(labels, seed=9)
    moved[:, :, 1, 0] += 30
    shifted = write_split(tmp_path / "shifted", "val", labels, moved)
    targets = {"itself": val, "elsewhere": elsewhere, "shifted": shifted}
    transfer_probe.main(
        [
            *["--settings", json.dumps(BASE), "--probe", str(probe), "--names", *targets],
            *["--prompts", *(str(split.prompts[0]) for split in targets.values())],
            *["--states", *(str(split.states[0]) for split in targets.values())],
            *["--lineage", str(probe / "manifest.json")],
            *["--output", str(tmp_path / "transfer.csv"), "--manifest", str(tmp_path / "transfer.manifest.json")],
        ]
    )
    table = pd.read_csv(tmp_path / "transfer.csv").set_index(["tested_on", "statistics"])
    assert table.loc[("itself", "stored"), "auroc"] == read_json(probe / "probe.json")["metrics"]["auroc"]
    assert table.loc[("elsewhere", "own"), "auroc"] < 0.7
    assert table.loc[("shifted", "own"), "accuracy"] > 0.9
    assert table.loc[("shifted", "stored"), "accuracy"] < 0.6
    manifests.check_manifest(tmp_path / "transfer.manifest.json")
    with (tmp_path / "transfer.csv").open("a") as file:
        file.write("itself,own,1\n")
    with pytest.raises(UserError, match=r"transfer\.csv: damaged"):
        manifests.check_manifest(tmp_path / "transfer.manifest.json")
