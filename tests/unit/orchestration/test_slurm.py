"""What a user reads about Slurm jobs that failed, and jobs that a killed Snakemake left at work."""

import asyncio
import logging
import subprocess

import pytest
import snakemake_executor_plugin_slurm as plugin

from elkflow.orchestration.slurm import cancel_orphans, failures, show_failures, tolerate_silence

SNAKEMAKE = """\
[Tue Nov 24 00:40:44 2026]
Error in rule train_ppo:
    message: SLURM-job '2' failed, SLURM status is: '{state}'. Detailed failure reason unavailable.
    jobid: 3
    output: results/runs/a/seed0/manifest.json
    log: logs/a.log, {slurm} (check log file(s) for error details)
    shell:
        python train_ppo.py
        (command exited with non-zero exit code)
    external_jobid: 2
Logfile logs/a.log: empty file
Trying to restart job 3.
[Tue Nov 24 00:41:44 2026]
Error in rule fetch_model:
    message: None
    log: logs/models/a.log (check log file(s) for error details)
"""


@pytest.mark.parametrize(
    ("state", "slurm", "reason"),
    [
        (
            "TIMEOUT",
            "slurmstepd-gpu1: error: *** STEP 2.0 ON gpu1 CANCELLED AT 2026-11-24T00:40:42 DUE TO TIME LIMIT ***\n",
            "STEP 2.0 ON gpu1 CANCELLED AT 2026-11-24T00:40:42 DUE TO TIME LIMIT",
        ),
        (
            "OUT_OF_MEMORY",
            "slurmstepd: error: Detected 1 oom_kill event in StepId=2.0. Some of the step tasks have been OOM Killed.\n"
            "slurmstepd: error: *** JOB 2 ON gpu1 CANCELLED AT 2026-11-24T00:40:43 ***\n",
            "Detected 1 oom_kill event in StepId=2.0. Some of the step tasks have been OOM Killed.",
        ),
        (
            "FAILED",
            "slurmstepd-gpu1: error: StepId=2.0 exceeded memory limit (426647552 > 419430400), being killed\n"
            "slurmstepd-gpu1: error: Exceeded job memory limit\nsrun: error: gpu1: task 0: Killed\n",
            "StepId=2.0 exceeded memory limit (426647552 > 419430400), being killed",
        ),
        ("FAILED", "srun: error: gpu1: task 0: Exited with exit code 1\n", "gpu1: task 0: Exited with exit code 1"),
        ("CANCELLED", "host: gpu1\n", ""),
        ("CANCELLED", None, ""),
    ],
)
def test_a_failed_slurm_job_is_listed_with_rule_state_reason_and_logs(tmp_path, capsys, state, slurm, reason):
    log = tmp_path / "2.log"
    if slurm is not None:
        log.write_text(f"Provided cores: 2\n{slurm}srun: forcing job termination\n")
    text = SNAKEMAKE.format(state=state, slurm=log)
    (failure,) = failures(text)
    assert (failure.rule, failure.job, failure.state, failure.reason) == ("train_ppo", "2", state, reason)
    assert failure.logs == ["logs/a.log", str(log)]
    (tmp_path / "snakemake.log").write_text(text)
    show_failures([str(tmp_path / "snakemake.log"), str(tmp_path / "missing.log")])
    first = f"rule train_ppo, Slurm job 2: {state}" + (f" ({reason})" if reason else "")
    assert capsys.readouterr().err.splitlines() == [
        "Slurm jobs that failed: 1",
        first,
        "    logs/a.log",
        f"    {log}",
    ]


def test_a_run_without_slurm_lists_nothing(tmp_path, capsys):
    (tmp_path / "snakemake.log").write_text(SNAKEMAKE.split("Trying")[1])
    show_failures([str(tmp_path / "snakemake.log")])
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """`squeue` and `scancel` over a folder of files, one a job, that hold the name of the run."""
    queue, programs = tmp_path / "queue", tmp_path / "bin"
    queue.mkdir()
    programs.mkdir()
    for job, run in {"7": "dead-run", "8": "dead-run", "9": "someone-else"}.items():
        (queue / job).write_text(run)
    # the names asked for are the argument after --name; a cancelled job takes one more look to go
    (programs / "squeue").write_text(
        f'#!/bin/sh\ncd {queue}; rm -f *.ending; while [ "$1" != --name ]; do shift; done\n'
        'for job in *; do case ",$2," in *",$(cat $job),"*) echo $job;; esac; done\n'
    )
    (programs / "scancel").write_text(
        f'#!/bin/sh\ncd {queue}; for job; do mv $job $job.ending; done; echo "$@" >>../c\n'
    )
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return queue


def logged(state, text):
    (state / "log").mkdir(parents=True)
    (state / "log" / "1.snakemake.log").write_text(text)
    return state


def test_jobs_of_a_dead_run_are_cancelled_and_waited_for_and_others_left(slurm, tmp_path):
    state = logged(tmp_path / "state", "SLURM run ID: dead-run\nother text\n")
    assert cancel_orphans(state) == ["7", "8"]
    assert [file.name for file in slurm.iterdir()] == ["9"], "somebody else's job was ended"
    assert (tmp_path / "c").read_text() == "7 8\n"
    assert cancel_orphans(state) == []


@pytest.mark.parametrize("text", ["", "SLURM run ID: finished-run\n"])
def test_without_orphans_nothing_is_cancelled(slurm, tmp_path, text):
    assert cancel_orphans(logged(tmp_path / "state", text)) == []
    assert len(list(slurm.iterdir())) == 3


def test_a_controller_that_does_not_answer_stops_the_start(slurm, tmp_path):
    """Going on would run a second copy of what may still be at work."""
    (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(subprocess.CalledProcessError):
        cancel_orphans(logged(tmp_path / "state", "SLURM run ID: dead-run\n"))


def test_jobs_are_kept_while_the_controller_does_not_answer(monkeypatch):
    monkeypatch.setattr(plugin, "query_job_status", plugin.query_job_status)  # put back afterwards
    ask = ["false", "printf 7|RUNNING"]
    assert asyncio.run(plugin.query_job_status(ask[0], logging.getLogger())) == (None, None), "the pin's own answer"
    tolerate_silence(plugin)
    assert asyncio.run(plugin.query_job_status(ask[0], logging.getLogger())) == ({}, 0.0)
    states, seconds = asyncio.run(plugin.query_job_status(ask[1], logging.getLogger()))
    assert states == {"7": "RUNNING"} and seconds > 0
