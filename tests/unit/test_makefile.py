"""`make run` on machines with this and that Python."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = """#!/bin/bash
[ "$1" = --version ] && echo "Python {version}" && exit
exec {real} -c "import sys; sys.version_info = ({numbers}); $2"
"""
TOOLS = ("bash", "make", "grep", "awk", "touch")


@pytest.fixture
def machine(tmp_path):
    """A function that makes a machine with Pythons of these versions and asks what `make run` would do there."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.txt").touch()
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))

    def ask(*arguments: str, **versions: str) -> subprocess.CompletedProcess:
        for name, version in versions.items():
            python = tmp_path / "bin" / name.replace("_", ".")
            python.write_text(PYTHON.format(version=version, numbers=version.replace(".", ", "), real=sys.executable))
            python.chmod(0o755)
        command = [tmp_path / "bin" / "make", "--directory", tmp_path, *arguments, "run"]
        environment = {"PATH": str(tmp_path / "bin"), "HOME": os.environ.get("HOME", "/")}
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    return ask


@pytest.mark.parametrize(
    ("versions", "taken"),
    [
        ({"python3_11": "3.11.2", "python3_12": "3.12.1", "python3": "3.9.1"}, "python3.11"),
        ({"python3_13": "3.13.0", "python3": "3.12.3"}, "python3.13"),
        ({"python3": "3.14.1"}, "python3"),
    ],
)
def test_the_first_python_that_fits_is_taken(machine, versions, taken):
    commands = machine("--dry-run", **versions).stdout
    assert f"/bin/{taken} -m venv .venv\n" in commands and "making .venv with" in commands


@pytest.mark.parametrize("versions", [{}, {"python3": "3.10.12"}, {"python3": "3.15.0"}])
def test_without_one_a_line_says_what_to_install(machine, versions):
    done = machine(**versions)
    (line, *_) = done.stderr.splitlines()
    assert done.returncode and line.startswith("elkflow needs Python 3.11 to 3.14") and "apt install python3" in line


def test_another_can_be_named(machine):
    assert "/opt/mine -m venv .venv\n" in machine("--dry-run", "PYTHON=/opt/mine", python3_11="3.11.2").stdout
