"""The lock of a dead run is removed, that of a live one stays."""

import os
import subprocess
import sys
import time

import pytest

from elkflow.common.paths import SCRIPTS
from elkflow.orchestration.snakemake_lock import drop_stale

HOLD = "from elkflow.orchestration.snakemake_lock import hold; hold(); input()"


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".snakemake" / "locks").mkdir(parents=True)
    lock = tmp_path / ".snakemake" / "locks" / "0.output.lock"
    lock.write_text("results/x\n")
    os.utime(lock, (time.time() - 60, time.time() - 60))
    return tmp_path / ".snakemake"


def test_a_lock_goes_once_its_run_is_dead(state):
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS)}
    with subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, env=environment) as run:
        while not (state / "running").exists():
            time.sleep(0.05)
        time.sleep(0.2)
        assert drop_stale(state) == [] and list((state / "locks").iterdir())
        run.kill()
    assert drop_stale(state) == ["0.output.lock"] and not list((state / "locks").iterdir())
    assert drop_stale(state) == []


def test_without_a_lock_nothing_is_written(tmp_path):
    assert drop_stale(tmp_path / "none") == [] and not list(tmp_path.iterdir())
