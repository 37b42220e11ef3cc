"""Snippets of the docs that need finished results, run on finished results."""

import shlex
import subprocess
import sys

import pytest
from docs.test_docs import ROOT, commands, of

SNIPPETS = {block.page.name: block.text for block in of("python", finished=True)}
SNIPPETS |= {line: shlex.split(line)[-1] for line in commands() if line.startswith("python -c ")}


@pytest.fixture
def checkout(finished):
    """The finished folder, laid out as a checkout in which the workflow has run."""
    (finished / "workflow").symlink_to(ROOT / "workflow")
    yield finished
    (finished / "workflow").unlink()


@pytest.mark.parametrize("name", SNIPPETS)
def test_snippets_run_on_finished_results(checkout, name):
    done = subprocess.run([sys.executable, "-c", SNIPPETS[name]], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
