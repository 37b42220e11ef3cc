"""The gate between a probe and the policies trained on it."""

import numpy as np
import pytest
from planted import BASE, made, train

from elkflow.common.errors import UserError
from elkflow.common.files import read_json
from elkflow.config.probe import ProbeSettings
from elkflow.probes.controls import Control
from elkflow.probes.gate import control_table


def test_a_probe_without_information_is_not_admitted(tmp_path):
    splits = made(tmp_path, truth=0.0)
    with pytest.raises(UserError, match=r"does not lead .*majority.* by 0\.05 AUROC(.|\n)*majority +0\.500.*NO"):
        train(tmp_path, splits, gate={"margin": 0.05})
    assert not (tmp_path / "probe").exists()
    facts = read_json(train(tmp_path, splits, gate={"margin": 0.05}, allow_weak_probe=True) / "probe.json")
    assert facts["gate"] == {"passed": False, "margin": 0.05, "allowed_anyway": True}


def test_the_gate_asks_for_the_lower_end_of_the_interval():
    """A lead of more than the margin on few rows is not enough; the same lead on many is."""
    settings = ProbeSettings(**BASE | {"gate": {"margin": 0.05}})
    passed = {}
    for rows in (24, 2400):
        labels = np.arange(rows) % 2
        rng = np.random.default_rng(0)
        control, probe = (shift * labels + rng.normal(size=rows) for shift in (0.7, 1.2))
        table = control_table([Control("zero_shot", control[None], "")], probe, labels, np.arange(rows), settings)
        row = table.iloc[0]
        assert row["lead"] > 0.05 and row["passed"] == (row["lead_low"] > 0.05)
        passed[rows] = bool(row["passed"])
    assert passed == {24: False, 2400: True}


def test_a_margin_of_zero_does_not_admit_a_probe_that_is_its_control():
    labels = np.arange(60) % 2
    scores = labels + np.random.default_rng(0).normal(size=60)
    settings = ProbeSettings(**BASE)
    row = control_table([Control("zero_shot", scores[None], "")], scores, labels, np.arange(60) // 3, settings).iloc[0]
    assert row["lead"] == row["lead_low"] == 0 and not row["passed"]


def test_only_named_controls_close_the_gate(tmp_path):
    splits = made(tmp_path, truth=0.35)
    with pytest.raises(UserError, match=r"random_directions|shuffled_labels"):
        train(tmp_path, splits, gate={"margin": 0.45})
    facts = read_json(train(tmp_path, splits, gate={"margin": 0.0, "against": ["majority"]}) / "probe.json")
    assert facts["gate"]["passed"] is True
