"""Manifests name outputs that were damaged."""

import pytest

from elkflow.common import manifests
from elkflow.common.errors import UserError


def test_a_manifest_names_the_damaged_output(tmp_path):
    made, manifest = tmp_path / "made.txt", tmp_path / "manifest.json"
    made.write_text("whole")
    manifests.write_manifest(manifest, outputs={"made": made}, inputs={}, settings={"x": 1}, seed=3)
    assert manifests.check_manifest(manifest)["seed"] == 3
    made.write_text("hole")
    with pytest.raises(UserError, match=r"made\.txt: damaged"):
        manifests.check_manifest(manifest)
    made.unlink()
    with pytest.raises(UserError, match=r"made\.txt: missing"):
        manifests.check_manifest(manifest)
