"""Runs side by side: means over seeds, and nothing where nothing was measured."""

import copy

from elkflow.report.run_rows import run_rows

TASK = {"kind": "training", "task": "training", "metric": "acc", "base": 0.5, "ci_low": 0.3, "ci_high": 0.5}
TRAINING = {
    "run": "a",
    "seed": 0,
    "wording": "training",
    "kl": 1.0,
    "seconds": 100.0,
    "held_out_gains": {"reward": {"value": 0.3}},
    "agreement": {"training": {"tuned_follows": 0.25}},
    "probes_after": None,
}


def verdict():
    other = copy.deepcopy(TRAINING) | {"run": "b", "held_out_gains": None}
    other["agreement"] = {"training": None}
    other["probes_after"] = {
        "fresh": {"auroc": 0.9},
        "off_domain": {"far": {"before": {"auroc": 0.8}, "after": {"auroc": 0.7}}},
    }
    second = copy.deepcopy(TRAINING) | {"seed": 1, "kl": 2.0, "seconds": 300.0}
    second["agreement"]["training"]["tuned_follows"] = 0.75
    rows = [TASK | {"run": run, "tuned": 0.9, "difference": 0.4, "per_seed": {0: 0.38, 1: 0.42}} for run in "ab"]
    between = {"run": "b", "against": "a", "seeds": 1, "difference": -0.02, "ci_low": -0.03, "ci_high": -0.01}
    return {"trainings": [TRAINING, second, other], "seeds": rows, "between": [between | {"p_value": 0.002}]}


def test_every_column_is_the_mean_of_the_seeds_that_have_it():
    first, second = run_rows(verdict())
    assert first == {
        "run": "a",
        "seeds": "2",
        "says": "90.0 %",
        "least, most": "88.0 %, 92.0 %",
        "gain, training": "+40.0 [30.0, 50.0] points",
        "reward, gain": "+0.300",
        "KL": "1.50",
        "follows the reward where it errs": "50%",
        "fresh probe": "",
        "seconds": "200",
        "less a": "",
        "probe far, before and after": "",
    }
    assert second["less a"] == "-2.0 [-3.0, -1.0], p 0.002"
    assert second["fresh probe"] == "0.900" and second["probe far, before and after"] == "0.800, 0.700"
    assert second["reward, gain"] == second["follows the reward where it errs"] == ""
    assert "frozen probe" not in first, "a column that no run has is left out"
