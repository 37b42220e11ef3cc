"""The profile under every fault that Slurm knows, on a small workflow of stages that can be resumed."""

import json
import re
import signal
from pathlib import Path

import pytest

from .conftest import ROOT, Run, edited_profile, wait_for

RUNS = ("fails", "hangs", "memory", "cancelled", "node")
SNAKEFILE = f"""
import sys

sys.path.insert(0, {str(ROOT / "workflow" / "scripts")!r})
from elkflow.locks import drop_stale, hold
from elkflow.orphans import end_orphans

if workflow.is_main_process:
    drop_stale()


onstart:
    hold()
    if workflow.executor_plugin.name == "slurm":
        end_orphans()


rule all:
    input:
        expand("done/{{run}}", run={RUNS}),


rule split_dataset:
    output:
        "data",
    log:
        "logs/data.log",
    shell:
        "date +%s%N >{{output}}"


rule train_ppo:
    input:
        "data",
    output:
        "done/{{run}}",
    log:
        "logs/{{run}}.log",
    resources:
        gpu=0,
        processes=1,
    shell:
        "python {Path(__file__).with_name("resumable.py")} {{wildcards.run}} {{output}} >>{{log}} 2>&1"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    (folder / "Snakefile").write_text(SNAKEFILE)
    return folder


def steps(folder: Path, run: str) -> list[dict]:
    file = folder / f"{run}.steps"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture(scope="module")
def start(cluster, folder):
    """Start the workflow on the cluster, as shipped but for the block, the memory of one run, and `--retries 0`."""

    def begin(name: str, memory: str) -> Run:
        profile = edited_profile(folder / name, account="", gpus=1)
        file = profile / "profile.v9+.yaml"
        text, count = re.subn(r"(  train_ppo:\n(?:    .*\n)*?    mem_mb: ).*", rf"\g<1>{memory}", file.read_text())
        assert count == 1
        file.write_text(text)
        return Run(cluster, folder, profile, snakefile=folder / "Snakefile").start("--retries", "0")

    return begin


@pytest.fixture(scope="module")
def broken(cluster, folder, start) -> tuple[Run, dict[str, str]]:
    """Every run hit by another fault while it is at work, and the controller restarted meanwhile."""
    run = start("first", "300 if wildcards.get('run') == 'memory' else 2000")
    names = {name: f"rule_train_ppo/{name}" for name in RUNS}
    wait_for(lambda: set(names.values()) <= set(run.jobs()), "five jobs", run=run)
    jobs = {name: run.jobs()[folder] for name, folder in names.items()}
    for name in ("fails", "hangs", "cancelled", "node"):
        wait_for(lambda name=name: steps(folder, name), f"{name} to be at work", run=run)
    # takes every job of the node along; Slurm starts them again
    node = cluster.node_of(jobs["node"])
    cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
    wait_for(lambda: len({step["process"] for step in steps(folder, "node")}) == 2, "a second start", run=run)
    for name in ("fails", "hangs", "cancelled"):
        wait_for(lambda name=name: cluster.processes(jobs[name], "resumable.py"), f"{name} to be back", run=run)
    cluster.run("scontrol", "update", f"JobId={jobs['hangs']}", "TimeLimit=1")
    cluster.signal(jobs["fails"], "resumable.py", signal.SIGKILL)
    cluster.signal(jobs["hangs"], "resumable.py", signal.SIGSTOP)
    cluster.run("scancel", jobs["cancelled"])
    cluster.restart_controller(outage=5)
    (folder / "enough").touch()  # what still runs may end
    assert run.finish(300) == 1, run.text
    return run, jobs


@pytest.mark.parametrize(
    ("fault", "state", "reason"),
    [
        ("fails", "FAILED", "Killed"),
        ("hangs", "TIMEOUT", "DUE TO TIME LIMIT"),
        ("memory", "FAILED", "Killed"),
        ("cancelled", "CANCELLED", "CANCELLED"),
    ],
)
def test_error_names_rule_job_reason_and_log(broken, fault, state, reason):
    run, jobs = broken
    errors = re.split(r"^Error in (?=rule )", run.text, flags=re.MULTILINE)[1:]
    (error,) = [error for error in errors if f"external_jobid: {jobs[fault]}\n" in error]
    assert error.startswith("rule train_ppo:")
    assert f"SLURM-job '{jobs[fault]}' failed, SLURM status is: '{state}'" in error
    assert f"logs/{fault}.log" in error
    (log,) = re.findall(rf"\S+/{jobs[fault]}\.log", error)
    assert reason in Path(log).read_text()


def test_slurm_itself_starts_the_job_of_a_dead_node_again(broken, folder):
    run, jobs = broken
    assert f"external_jobid: {jobs['node']}\n" not in run.text
    assert (folder / "done/node").exists()
    assert len({step["process"] for step in steps(folder, "node")}) == 2


@pytest.fixture(scope="module")
def recovered(broken, cluster, folder, start) -> Run:
    """The same command with a node drained, killed at work, and given once more."""
    (folder / "enough").unlink()
    before = (folder / "data").stat().st_mtime_ns
    cluster.run("scontrol", "update", "NodeName=gpu1", "State=DRAIN", "Reason=test")
    known = len(steps(folder, "cancelled"))
    run = start("second", "2000")
    wait_for(lambda: len(steps(folder, "cancelled")) > known, "the cancelled run to go on", run=run)
    orphans = run.jobs()
    nodes = {cluster.node_of(job) for job in orphans.values()} - {""}
    assert nodes == {"gpu2"}, "a drained node got a job"
    assert run.process
    run.process.kill()
    run.process.wait()
    again = start("second", "2000")
    wait_for(lambda: len(again.jobs()) == len(orphans), "the jobs to be submitted again", run=again)
    assert {cluster.states()[job] for job in orphans.values()} == {"CANCELLED"}
    (folder / "enough").touch()
    assert again.finish(200) == 0, again.text
    cluster.run("scontrol", "update", "NodeName=gpu1", "State=RESUME")
    assert (folder / "data").stat().st_mtime_ns == before, "a finished stage was repeated"
    return again


def test_starting_again_goes_on_where_every_run_stopped(recovered, folder):
    assert "rule split_dataset" not in recovered.text
    for name in RUNS:
        assert (folder / f"done/{name}").exists()
        numbers = [step["step"] for step in steps(folder, name)]
        assert numbers == list(range(len(numbers))), f"{name} repeated a step or had two writers"
