"""Which Slurm jobs failed, and why: one short list at the end of a run.

Slurm's executor says the state in which a job ended; why it did (which limit, which node) stands in the job's own log,
in a line of Slurm's job daemon. Both are read from files, since Slurm itself forgets a job within minutes.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FAILED = re.compile(r"^Error in rule (\S+):\n((?:    .*\n)+)", re.MULTILINE)
"""A failed job in Snakemake's log."""
LOGS = re.compile(r"^    log: (.+) \(check log file\(s\) for error details\)$", re.MULTILINE)
JOB = re.compile(r"^    external_jobid: (\S+)$", re.MULTILINE)
STATE = re.compile(r"SLURM status is: '(\w+)'")
DAEMON = re.compile(r"^(?:slurmstepd\S*|srun): error: (.+)$", re.MULTILINE)
TELLING = re.compile(r"DUE TO|exceeded memory|oom_kill")
"""What says more than that a task ended."""


@dataclass(frozen=True)
class Failure:
    """A job that Slurm ended, or that ended in an error."""

    rule: str
    job: str
    state: str
    """Slurm's, e.g. `TIMEOUT`."""
    reason: str
    """The job daemon's line about it, or nothing where it wrote none."""
    logs: list[str]
    """The rule's own log, then that of the Slurm job."""

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        return "\n".join(
            [f"rule {self.rule}, Slurm job {self.job}: {self.state}{why}", *(f"    {log}" for log in self.logs)]
        )


def failures(log: str) -> list[Failure]:
    """Slurm jobs that failed, of Snakemake's log `log`, oldest first; those that were tried again stand among them."""
    found = []
    for rule, block in FAILED.findall(log):
        job, state, logs = JOB.search(block), STATE.search(block), LOGS.search(block)
        if job and state:
            paths = logs[1].split(", ") if logs else []
            found.append(Failure(rule, job[1], state[1], _reason(paths[-1:]), paths))
    return found


def _reason(logs: list[str]) -> str:
    """The last line by which a job's daemon tells what happened to the job."""
    lines: list[str] = []
    for path in logs:
        if Path(path).is_file():
            lines += DAEMON.findall(Path(path).read_text(encoding="utf-8", errors="replace"))
    telling = [line for line in lines if TELLING.search(line)] or lines
    return telling[-1].strip(" *") if telling else ""


def show_failures(logs: Sequence[str]) -> None:
    """List the failed Slurm jobs of Snakemake's log files on stderr; say nothing where there are none."""
    texts = [Path(log).read_text(encoding="utf-8", errors="replace") for log in logs if Path(log).is_file()]
    if found := [failure for text in texts for failure in failures(text)]:
        print(f"Slurm jobs that failed: {len(found)}", *found, sep="\n", file=sys.stderr, flush=True)
