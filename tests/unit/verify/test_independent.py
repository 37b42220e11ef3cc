"""Independent code finds mistakes of the comparison itself."""

import re
import shutil

import pytest
from finished import PLAN

from elkflow.common import metrics
from elkflow.report.summarise import summarise
from elkflow.summary import comparison
from elkflow.verify import independent


@pytest.mark.parametrize(
    ("place", "name", "mistake", "message"),
    [
        (comparison, "mcnemar", lambda a, b: 0.5 * metrics.mcnemar(a, b), r"training: p is .*, independently"),
        (comparison, "holm", lambda values: list(values), r"p \(Holm\) is"),
        (comparison, "influence", lambda samples: samples["value"].to_numpy(float) * 1.01, r"training: base is 0.505"),
        (
            comparison,
            "pair_samples",
            lambda base, tuned, task: (
                base[base["task"] == task].reset_index(drop=True),
                tuned[tuned["task"] == task].iloc[::-1].reset_index(drop=True),
            ),
            r"seed 1, training: p is",
        ),
        (
            comparison,
            "resamples",
            lambda n, *_, **__: metrics.resamples(n, 200, 1, [i // 12 for i in range(n)]),
            "ci_low is",
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
