"""Freed memory is reused without the kernel, and new memory comes in large pages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from elkflow.common.memory import HUGE_PAGES
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


LARGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
HELD = """
import numpy as np
from pathlib import Path
from elkflow.common.memory import keep_freed_memory
keep_freed_memory()
kept = [np.ones(2**20) for _ in range(20)]  # 160 MB
print(Path("/proc/self/smaps_rollup").read_text().split("AnonHugePages:")[1].split()[0])
"""


def told_what_it_is_asked_for() -> bool:
    known = sys.platform == "linux" and "CS_GNU_LIBC_VERSION" in os.confstr_names
    version = (os.confstr("CS_GNU_LIBC_VERSION") or "glibc 0.0") if known else "glibc 0.0"
    newest = tuple(map(int, version.split()[1].split(".")[:2])) >= (2, 35)
    return newest and LARGE.exists() and "[never]" not in LARGE.read_text()


@pytest.mark.skipif(not told_what_it_is_asked_for(), reason="needs glibc 2.35 and a kernel with transparent huge pages")
def test_tensors_come_in_large_pages():
    environment = {"PYTHONPATH": str(SCRIPTS)} | HUGE_PAGES
    done = subprocess.run([sys.executable, "-c", HELD], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 100 * 1024  # kB
