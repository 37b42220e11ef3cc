"""Freed memory is reused without the kernel."""

import subprocess
import sys

import pytest

from elkflow.common.paths import SCRIPTS

CODE = """
import resource, sys
import numpy as np
from elkflow.common.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def step():
    kept = [np.ones(2**20) for _ in range(20)]  # 160 MB, as a step's activations: all freed at its end
step(), step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be told")
def test_freed_memory_is_kept():
    faults = {}
    for way in ("keep", "return"):
        command = [sys.executable, "-c", CODE, way]
        done = subprocess.run(command, env={"PYTHONPATH": str(SCRIPTS)}, capture_output=True, text=True, check=True)
        faults[way] = int(done.stdout)
    assert faults["keep"] < 100 < faults["return"]
