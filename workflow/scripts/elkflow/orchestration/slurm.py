"""What Snakemake's Slurm executor (2.8.0) leaves undone: orphaned jobs, a silent controller, why jobs failed."""

import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RUN = re.compile(r"SLURM run ID: (\S+)")
"""How the executor tells, in Snakemake's own log, the name under which it submits jobs."""
FAILED = re.compile(r"^Error in rule (\S+):\n((?:    .*\n)+)", re.MULTILINE)
"""A failed job in Snakemake's log."""
LOGS = re.compile(r"^    log: (.+) \(check log file\(s\) for error details\)$", re.MULTILINE)
JOB = re.compile(r"^    external_jobid: (\S+)$", re.MULTILINE)
STATE = re.compile(r"SLURM status is: '(\w+)'")
DAEMON = re.compile(r"^(?:slurmstepd\S*|srun): error: (.+)$", re.MULTILINE)
TELLING = re.compile(r"DUE TO|exceeded memory|oom_kill")
"""What says more than that a task ended."""

Query = Callable[..., Awaitable[tuple[dict[str, str] | None, float | None]]]


def earlier_runs(state: Path = Path(".snakemake")) -> list[str]:
    """Names under which runs in this folder submitted jobs."""
    logs = sorted((state / "log").glob("*.log"))
    return [name for log in logs for name in RUN.findall(log.read_text(encoding="utf-8", errors="replace"))]


def cancel_orphans(state: Path = Path(".snakemake"), seconds: float = 120.0) -> list[str]:
    """Cancel jobs of earlier runs in this folder and wait until they are gone; return their Slurm ids.

    A Snakemake that is killed outright leaves its Slurm jobs running. Starting again must not run a second copy beside
    them: two writers of one adapter. What they were doing starts again from its last checkpoint.

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


def tolerate_silence(plugin: Any) -> None:
    """Make the plugin's status query answer "nothing known" where it would answer nothing at all.

    When every status query of a round fails, the executor neither reports its jobs nor keeps them: it forgets them, and
    Snakemake waits for ever. An empty answer instead tells it that Slurm does not show the jobs yet.
    """
    query: Query = plugin.query_job_status

    async def patient(command: str, logger: Any) -> tuple[dict[str, str], float]:
        states, seconds = await query(command, logger)
        return (states or {}, seconds or 0.0)

    plugin.query_job_status = patient


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
    """Slurm jobs that failed, of Snakemake's log `log`, oldest first; those that were tried again stand among them.

    The executor says the state in which a job ended; why it did (which limit, which node) stands in the job's own log,
    in a line of Slurm's job daemon. Both are read from files, since Slurm itself forgets a job within minutes.
    """
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
