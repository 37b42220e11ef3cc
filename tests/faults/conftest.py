"""The tally of faults, printed when the tests end."""

from collections import Counter

import pytest

FAULTS: Counter[str] = Counter()


@pytest.fixture
def tally() -> Counter[str]:
    """Count of faults survived, by kind."""
    return FAULTS


def pytest_terminal_summary(terminalreporter):
    if FAULTS:
        terminalreporter.section("faults survived")
        for kind, count in sorted(FAULTS.items()):
            terminalreporter.write_line(f"{count:6d}  {kind}")
        terminalreporter.write_line(f"{FAULTS.total():6d}  in all")
