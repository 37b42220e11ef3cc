"""Independent code finds mistakes of the comparison itself."""

import re
import shutil

import numpy as np
import pytest
from finished import PLAN

from elkflow.common import inference, metrics
from elkflow.report.summarise import summarise
from elkflow.summary import comparison
from elkflow.verify import independent


@pytest.mark.parametrize(
    ("place", "name", "mistake", "message"),
    [
        (inference, "mcnemar_mid_p", lambda first, second: 0.25, r"cloze: p is 0.25, independently"),
        (inference, "cluster_error", lambda values, index: 0.03, r"training: ci_low is .*, independently"),
        (comparison, "holm", lambda values: list(values), r"p \(Holm\) is"),
        (comparison, "influence", lambda samples: samples["value"].to_numpy(float) * 1.01, r"training: base is 0.505"),
        (
            comparison,
            "pair_samples",
            lambda base, tuned, task: (
                base[base["task"] == task].reset_index(drop=True),
                tuned[tuned["task"] == task].iloc[::-1].reset_index(drop=True),
            ),
            r"seed 1, training: ci_low is",
        ),
        (comparison, "groups_in", lambda samples, groups: np.arange(len(samples)) // 12, "training: ci_low is"),
        (
            inference,
            "over_seeds",
            lambda differences, groups: inference.Estimate(0.45, 0.4, 0.5, 0.01),
            "r, training: ci_low over seeds is 0.4, independently",
        ),
    ],
)
def test_a_mistake_of_the_comparison_itself_is_found(results, tmp_path, monkeypatch, place, name, mistake, message):
    """Recomputing with the same code agrees with itself; independent code does not."""
    monkeypatch.setattr(place, name, mistake)
    folder = shutil.copytree(results, tmp_path / "results")
    summarise(PLAN, folder, folder / "summary")
    _, wrong = independent.recompute_independently(folder)
    assert any(re.search(message, line) for line in wrong), wrong


def test_holm_by_definition_is_holm():
    values = [0.04, 0.01, 0.03, 0.01, 0.9]
    assert independent.holm_by_definition(values) == pytest.approx(metrics.holm(values))
