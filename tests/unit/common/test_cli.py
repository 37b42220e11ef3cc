"""Command lines from dataclasses, and user errors as one line."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from elkflow.common import cli
from elkflow.common.errors import UserError
from elkflow.config.base import Settings


class Section(Settings):
    steps: int


@dataclass(frozen=True)
class Arguments:
    """Arguments of a test."""

    settings: Section
    rows: list[Path]
    maybe: Section | None = None
    seed: int = 0
    names: list[str] = field(default_factory=list)


def test_a_dataclass_becomes_a_command_line():
    arguments = cli.parse(Arguments, ["--settings", '{"steps": 2}', "--rows", "a", "b", "--seed", "7"])
    assert arguments == Arguments(Section(steps=2), [Path("a"), Path("b")], seed=7)
    assert cli.parse(Arguments, ["--settings", '{"steps": 2}', "--rows", "--maybe", '{"steps": 1}']).maybe.steps == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('{"steps": "x"}', "--settings: steps: "),
        ('{"stepz": 1}', r"--settings: stepz: there is no such key; did you mean `steps`\?"),
        ('{"steps": 1, "stepz": 1}', r"--settings: stepz: there is no such key; did you mean `steps`\?"),
    ],
)
def test_a_bad_option_is_named(settings, message):
    with pytest.raises(UserError, match=message):
        cli.parse(Arguments, ["--settings", settings, "--rows", "a"])


def test_a_user_error_is_one_line_and_exit_code_1(capsys):
    def main():
        raise UserError("probes.truth.model: no such model")

    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    assert stop.value.code == 1
    assert capsys.readouterr().err == "error: probes.truth.model: no such model\n"
