"""Controls next to a probe on planted states."""

import pandas as pd
import pytest
from planted import made, train

from elkflow.common.errors import UserError


def test_controls_are_reported_with_the_lead_over_each(whole):
    controls = pd.read_csv(whole[2] / "controls.csv").set_index("control")
    expected = ["majority", "word_overlap", "bag_of_words", "zero_shot", "random_directions", "shuffled_labels"]
    assert list(controls.index) == expected
    assert controls.loc["majority", "auroc"] == 0.5
    assert (controls["auroc"] < 0.85).all()
    assert (controls["lead_low"] > 0).all() and controls["passed"].all()


def test_an_untrained_models_states_are_a_control(tmp_path):
    """Here they know as much as the trained model's, so the probe has no lead and is refused."""
    splits = made(tmp_path / "trained")
    twins = made(tmp_path / "fresh")
    paths = {
        "untrained_prompts": [split.prompts[0] for split in twins],
        "untrained_states": [split.states[0] for split in twins],
    }
    with pytest.raises(UserError, match="does not lead untrained_model by"):
        train(tmp_path, splits, paths, methods=["mass_mean"])
    probe = train(tmp_path, splits, paths, methods=["mass_mean"], allow_weak_probe=True)
    control = pd.read_csv(probe / "controls.csv").set_index("control").loc["untrained_model"]
    assert control["auroc"] > 0.95 and control["lead"] == pytest.approx(0)
    blind = made(tmp_path / "blind", truth=0.0)
    paths = {"untrained_prompts": [s.prompts[0] for s in blind], "untrained_states": [s.states[0] for s in blind]}
    assert train(tmp_path, splits, paths, methods=["mass_mean"]).is_dir()
