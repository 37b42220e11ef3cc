"""Slurm jobs that outlived the Snakemake which submitted them.

A Snakemake that is killed outright leaves its Slurm jobs running. Starting again must not run a second copy beside
them: two writers of one adapter. They are ended first; what they were doing starts again from its last checkpoint.
"""

import re
import subprocess
import time
from pathlib import Path

RUN = re.compile(r"SLURM run ID: (\S+)")
"""How Slurm's executor tells, in Snakemake's own log, the name under which it submits jobs."""


def earlier_runs(state: Path = Path(".snakemake")) -> list[str]:
    """Names under which runs in this folder submitted jobs."""
    logs = sorted((state / "log").glob("*.log"))
    return [name for log in logs for name in RUN.findall(log.read_text(encoding="utf-8", errors="replace"))]


def end_orphans(state: Path = Path(".snakemake"), seconds: float = 120.0) -> list[str]:
    """Cancel jobs of earlier runs in this folder and wait until they are gone; return their Slurm ids.

    Call it while holding the folder's lock and before the first submission: then every such job is an orphan.
    """
    names = ",".join(earlier_runs(state))
    if not names or not (found := _alive(names)):
        return []
    subprocess.run(["scancel", *found], check=True, timeout=60)
    end = time.monotonic() + seconds
    while _alive(names) and time.monotonic() < end:
        time.sleep(1)
    return found


def _alive(names: str) -> list[str]:
    command = ["squeue", "--me", "--noheader", "--name", names, "--format", "%i"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
