"""What a run shows: a line for each job, errors in full, the newest progress bar."""

import io
import logging
import os
import sys
from types import SimpleNamespace

import pytest
from snakemake.logging import ColorizingTextHandler, DefaultFilter, DefaultFormatter
from snakemake_interface_logger_plugins.common import LogEvent

from elkflow.common import cli
from elkflow.orchestration.job_lines import CLEAR, JobLines, show_job_lines

RULES = {
    "render_prompts": SimpleNamespace(output=["x"], snakefile="/checkout/workflow/rules/prompts.smk"),
    "prefetch": SimpleNamespace(output=["x"], snakefile="/checkout/workflow/rules/publish.smk"),
    "all": SimpleNamespace(output=[], snakefile="/checkout/Snakefile"),
}
QUIET = {"quiet": set(), "verbose": False, "debug_dag": False, "printshellcmds": False}


@pytest.fixture
def stream():
    return io.StringIO()


@pytest.fixture
def workflow(stream):
    """A workflow whose logger has Snakemake's own handler, which writes to `stream`."""
    logger = logging.Logger("snakemake")
    handler = ColorizingTextHandler(nocolor=True, stream=stream)
    handler.name = "DefaultStreamHandler"
    handler.setFormatter(DefaultFormatter(set(), show_failed_logs=True))
    handler.addFilter(DefaultFilter(set(), False, False, False, False))
    logger.addHandler(handler)
    return SimpleNamespace(
        output_settings=SimpleNamespace(**QUIET),
        logger_manager=SimpleNamespace(logger=logger),
        get_rule=RULES.__getitem__,
    )


def start(logger, number, rule, **wildcards):
    facts = {"jobid": number, "rule_name": rule, "wildcards": wildcards, "rule_msg": None}
    facts |= {
        "input": ["in"] * 99,
        "output": ["out"],
        "log": [],
        "benchmark": None,
        "reason": "because",
        "local": False,
    }
    facts |= {"is_checkpoint": False, "priority": 0, "threads": 1, "resources": {}, "indent": False}
    logger.info(f"Rule: {rule}", extra={"event": LogEvent.JOB_INFO} | facts)


def finish(logger, number):
    logger.info(f"Finished jobid: {number}", extra={"event": LogEvent.JOB_FINISHED, "job_id": number})


def run(logger):
    """Two jobs side by side, and the target."""
    logger.info(
        "Job stats: ...",
        extra={"event": LogEvent.RUN_INFO, "stats": {"render_prompts": 1, "prefetch": 1, "all": 1, "total": 3}},
    )
    start(logger, 1, "render_prompts", model="m", dataset="d", wording="w")
    start(logger, 2, "prefetch")
    logger.info("Select jobs to execute...")
    finish(logger, 2)
    finish(logger, 1)
    start(logger, 0, "all")
    finish(logger, 0)


def test_a_line_for_each_job_and_nothing_else(workflow, stream):
    show_job_lines(workflow)
    run(workflow.logger_manager.logger)
    first, second = stream.getvalue().splitlines()
    assert first.split() == ["[1/2]", "publish", "prefetch", "0.0", "s"]
    assert second.split() == ["[2/2]", "2", "prompts", "render_prompts", "m", "d", "w", "0.0", "s"]


def test_warnings_errors_and_the_end_are_shown_in_full(workflow, stream, tmp_path):
    show_job_lines(workflow)
    logger = workflow.logger_manager.logger
    (tmp_path / "job.log").write_text("error: everything about it\n")
    start(logger, 1, "render_prompts", model="m")
    error = {
        "rule_name": "render_prompts",
        "rule_msg": None,
        "jobid": 1,
        "input": ["in"],
        "output": ["out"],
    }
    error |= {"log": [str(tmp_path / "job.log")], "conda_env": None, "shellcmd": "python x.py", "aux": {}}
    logger.error("Error in rule", extra={"event": LogEvent.JOB_ERROR} | error)
    logger.warning("a warning")
    logger.info("Nothing to be done (all requested files are present and up to date).")
    logger.info("Provided cores: 2")
    shown = stream.getvalue()
    assert "Error in rule render_prompts:" in shown and "error: everything about it" in shown
    assert "a warning\n" in shown and "Nothing to be done" in shown and "Provided cores" not in shown
    finish(logger, 1)
    assert stream.getvalue() == shown, "a job that failed is not finished"


@pytest.mark.parametrize("asked", [{"printshellcmds": True}, {"verbose": True}, {"quiet": {"rules"}}])
def test_who_asks_for_more_or_less_gets_it_from_snakemake(workflow, stream, asked):
    workflow.output_settings = SimpleNamespace(**QUIET | asked)
    show_job_lines(workflow)
    run(workflow.logger_manager.logger)
    assert "reason: because" in stream.getvalue()


def test_another_handler_of_the_users_is_left_alone(workflow):
    workflow.logger_manager.logger.handlers[0].name = "mine"
    show_job_lines(workflow)
    assert isinstance(workflow.logger_manager.logger.handlers[0].formatter, DefaultFormatter)


def test_the_status_has_the_running_jobs_and_the_newest_bar(workflow, tmp_path, monkeypatch):
    lines = JobLines(workflow, DefaultFormatter())
    lines.clear = CLEAR
    record = SimpleNamespace(rule_name="render_prompts", wildcards={"model": "m", "dataset": "d"})
    lines.running = {number: lines._job(record) for number in range(5)}
    assert lines.status(tmp_path) == ", ".join(["render_prompts m d (0 s)"] * 3) + " and 2 more"
    monkeypatch.setenv(cli.BARS, str(tmp_path))
    for _ in cli.progress(range(2), "PPO"):
        text = lines.status(tmp_path)
        assert text.startswith("PPO:   0%") and text.endswith("and 2 more") and not set(text) & {"\n", "\r"}
    (tmp_path / "older").write_text("\rnot this one")
    os.utime(tmp_path / "older", (1, 1))
    assert lines.status(tmp_path).startswith("render_prompts"), "a bar that is over is gone"
    lines.running = {7: lines.running[0]}
    text = lines.format(logging.makeLogRecord({"job_id": 7}))
    assert text.startswith(f"{CLEAR}[1/0]"), "the status line is wiped before another line is written"


def test_without_a_watching_workflow_bars_are_silent(monkeypatch, tmp_path):
    monkeypatch.setenv(cli.BARS, str(tmp_path / "a folder of another machine"))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert list(cli.progress([1, 2], "x")) == [1, 2] and sys.stderr.getvalue() == ""
