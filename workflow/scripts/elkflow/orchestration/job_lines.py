"""What a person sees of a run: a line for each finished job, and errors in full. Snakemake's log has everything."""

import logging
import os
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from elkflow.common.cli import BARS

STAGES = ("models", "data", "prompts", "hiddens", "probes", "rewards", "ppo", "evaluation", "summary")
"""The rules files in the order of their numbers."""
TOLD = ("Nothing to be done", "Complete log", "Trying to restart")
"""How those of Snakemake's own plain messages begin that are shown."""
CLEAR = "\r\x1b[K"


def show_job_lines(workflow: Any) -> None:
    """Let the run that starts show lines, unless it was asked for more (`--printshellcmds`, `--verbose`) or less."""
    settings = workflow.output_settings
    handlers = [each for each in workflow.logger_manager.logger.handlers if each.name == "DefaultStreamHandler"]
    if not handlers or settings.quiet or settings.verbose or settings.debug_dag or settings.printshellcmds:
        return
    (handler,) = handlers
    lines = JobLines(workflow, handler.formatter)
    handler.filters = [lines]
    handler.setFormatter(lines)
    if handler.stream.isatty():
        threading.Thread(target=lines.show_status, args=[handler], daemon=True).start()


@dataclass
class Job:
    """A job at work."""

    stage: str
    what: str
    start: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """How long ago it was started, or sent to a cluster."""
        return time.monotonic() - self.start


class JobLines(logging.Formatter):
    """Filter and formatter of what a run shows.

    Args:
        full: Snakemake's own formatter, for errors.
    """

    def __init__(self, workflow: Any, full: logging.Formatter) -> None:
        super().__init__()
        self.workflow, self.full = workflow, full
        self.running: dict[int, Job] = {}
        self.done = self.total = 0
        self.clear = ""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is shown; keeps account of the jobs on the way."""
        event = getattr(getattr(record, "event", None), "name", None)
        if event == "RUN_INFO":
            self.total = sum(n for name, n in record.stats.items() if name != "total" and self._makes_files(name))  # type: ignore[attr-defined]
        elif event == "JOB_INFO" and self._makes_files(record.rule_name):  # type: ignore[attr-defined]
            self.running[record.jobid] = self._job(record)  # type: ignore[attr-defined]
        elif event == "JOB_FINISHED":
            return record.job_id in self.running  # type: ignore[attr-defined]
        elif event == "JOB_ERROR":
            self.running.pop(record.jobid, None)  # type: ignore[attr-defined]
        if record.levelno >= logging.WARNING:
            return True
        return event is None and (record.getMessage().startswith(TOLD) or "executor_plugin" in record.pathname)

    def format(self, record: logging.LogRecord) -> str:
        """The text of a record that is shown."""
        job = self.running.pop(getattr(record, "job_id", -1), None)
        if job is None:
            return self.clear + self.full.format(record)
        self.done += 1
        width = len(str(self.total))
        return f"{self.clear}[{self.done:{width}}/{self.total}]  {job.stage:<13}{job.what:<60} {job.seconds:7.1f} s"

    def show_status(self, handler: Any) -> None:
        """Keep the terminal's last line up to date while jobs run: which, for how long, and their newest bar."""
        with tempfile.TemporaryDirectory() as folder:
            os.environ[BARS] = folder  # for the jobs, which inherit it
            self.clear = CLEAR
            while True:
                time.sleep(0.5)
                with handler.lock:
                    if self.running:
                        handler.stream.write(
                            CLEAR + self.status(Path(folder))[: shutil.get_terminal_size().columns - 1]
                        )
                        handler.stream.flush()

    def status(self, folder: Path) -> str:
        """The bar that moved last of those in `folder`, and the running jobs."""
        jobs = ", ".join(f"{job.what} ({job.seconds:.0f} s)" for job in list(self.running.values())[:3])
        more = f" and {len(self.running) - 3} more" if len(self.running) > 3 else ""
        files = sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime)
        text = files[-1].read_text(encoding="utf-8", errors="replace") if files else ""
        bar = text.split("\n")[-1].strip()  # bars are written over one another after "\r", which is read as "\n"
        return f"{bar}  {jobs}{more}".strip()

    def _job(self, record: Any) -> Job:
        room = Path(self.workflow.get_rule(record.rule_name).snakefile).stem
        stage = f"{STAGES.index(room)} {room}" if room in STAGES else room
        return Job(stage, " ".join([record.rule_name, *dict(record.wildcards).values()]))

    def _makes_files(self, rule: str) -> bool:
        return bool(self.workflow.get_rule(rule).output)
