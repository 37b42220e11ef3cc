"""Tables of a probe's results."""

import pandas as pd


def test_layers_are_reported_for_every_method_and_part_with_intervals(whole):
    layers = pd.read_csv(whole[2] / "layers.csv")
    chance = layers["method"].isin(["random_directions", "shuffled_labels"])
    assert chance.sum() == 2 * 3 and (layers.loc[chance, "auroc"] < 0.8).all()
    layers = layers[~chance]
    assert len(layers) == 6 * 3 * 2
    for metric in ("accuracy", "auroc"):
        assert (layers[f"{metric}_low"] <= layers[metric] + 0.05).all()
        assert (layers[metric] <= layers[f"{metric}_high"] + 0.05).all()
    best = layers[(layers["part"] == "val") & (layers["layer"] == 1)]
    assert (best["auroc"] > 0.95).all()


def test_each_method_is_reported_at_its_own_layer(whole):
    methods = pd.read_csv(whole[2] / "methods.csv").set_index("method")
    assert (methods["layer"] == 1).all()
    assert methods.loc["ccs", "sign"] == "by labels of the fit part"
    assert methods.loc["logistic", "sign"] == "by the labels it was fitted on"
