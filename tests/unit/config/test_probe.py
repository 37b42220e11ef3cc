"""Settings of a probe."""

import pytest
from planted import BASE

from elkflow.config.probe import ProbeSettings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": "vinc"}, "reward: 'vinc' is not among methods"),
        ({"methods": ["ccs", "ccs"]}, "'ccs' is listed twice"),
        ({"variants": ["plain"]}, "variants: 'plain' is already the wording"),
        ({"layers": [1, 1]}, "layers: give at least one, each once"),
        ({"selection": 1.0}, "selection"),
        ({"logistic": {"l2": [0.0]}}, "l2"),
        ({"gate": {"margins": 0.1}}, "margins"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ProbeSettings(**(BASE | change))
