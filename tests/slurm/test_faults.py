"""PPO hit by every fault that Slurm knows, all in one run; then the same command again, and once more."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from workspace import write_config

from elkflow.failures import failures
from elkflow.files import sha256

from .conftest import Run, edited_profile, wait_for

SCRIPT = "train_ppo.py"
STEPS = 200  # many times what a run does between its first checkpoint and the fault
SEEDS = {"fails": 0, "hangs": 1, "memory": 2, "cancelled": 3, "node": 4}  # what happens to the run of each seed
STRUCK = ("fails", "hangs", "cancelled", "node")  # at work; too little memory ends a run before it starts
TARGETS = [f"results/runs/faulty/seed{seed}/manifest.json" for seed in SEEDS.values()]


def upstream(folder: Path) -> dict[str, str]:
    """Hash and time of everything made before PPO."""
    made = [path for path in (folder / "results").rglob("*") if path.is_file() and "runs" not in path.parts]
    return {str(path): f"{sha256(path)} {path.stat().st_mtime_ns}" for path in made}


def went_on(folder: Path, fault: str) -> bool:
    """Whether the newest log of a run says that PPO went on from a checkpoint."""
    return "going on after step" in (folder / f"logs/runs/faulty/seed{SEEDS[fault]}/train_ppo.log").read_text()


@pytest.fixture(scope="module")
def start(cluster, finished, folder) -> Iterator:
    """Start a longer run of five seeds, of which only PPO is left to do; nothing is tried twice."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (run,) = config["runs"].values()
    run["ppo"] |= {"steps": STEPS, "checkpoint_every": 10, "evaluate_every": 100}
    config["runs"] = {"faulty": run | {"seeds": list(SEEDS.values())}}
    write_config(folder / "faulty.yaml", config)

    def begin(memory: str) -> tuple[Run, dict[str, str]]:
        profile = edited_profile(folder / "faulty", {"train_ppo": memory}, account="", gpus=1)
        run = Run(cluster, folder, profile, ["--configfile", "faulty.yaml"]).start("--retries", "0", *TARGETS)
        left = {fault: seed for fault, seed in SEEDS.items() if not (folder / TARGETS[seed]).exists()}
        names = {fault: f"rule_train_ppo/faulty_{seed}" for fault, seed in left.items()}
        wait_for(lambda: set(names.values()) <= set(run.jobs()), "the jobs", run=run)
        return run, {fault: run.jobs()[name] for fault, name in names.items()}

    before = upstream(folder)
    yield begin
    assert upstream(folder) == before, "a finished stage was repeated"


@pytest.fixture(scope="module")
def broken(cluster, folder, start) -> tuple[Run, dict[str, str]]:
    """Every run hit by its fault, the controller restarted meanwhile."""
    run, jobs = start(f"400 if wildcards.get('seed') == '{SEEDS['memory']}' else 8000")
    waiting = set(STRUCK)

    def stopped_with_a_checkpoint(fault: str) -> bool:
        """Held where it is, so that none is over before all are hit."""
        if not list((folder / f"results/runs/faulty/seed{SEEDS[fault]}/checkpoints").glob("step-*/hashes.json")):
            return False
        cluster.signal(jobs[fault], SCRIPT, signal.SIGSTOP)
        return True

    def all_stopped() -> bool:
        waiting.difference_update([fault for fault in waiting if stopped_with_a_checkpoint(fault)])
        return not waiting

    wait_for(all_stopped, "a first checkpoint of every run", run=run)
    old = {fault: cluster.processes(jobs[fault], SCRIPT) for fault in STRUCK}
    node = cluster.node_of(jobs["node"])
    lost = [fault for fault in STRUCK if cluster.node_of(jobs[fault]) == node]
    cluster.fail_node(node)  # Slurm starts its jobs again

    def back(fault: str) -> bool:
        now = cluster.processes(jobs[fault], SCRIPT)
        return bool(now) and not set(now) & set(old[fault])

    for fault in lost:
        wait_for(lambda fault=fault: back(fault), f"{fault} to be back", run=run)
    cluster.signal(jobs["fails"], SCRIPT, signal.SIGKILL)
    cluster.signal(jobs["hangs"], SCRIPT, signal.SIGSTOP)
    cluster.run("scontrol", "update", f"JobId={jobs['hangs']}", "TimeLimit=1")
    cluster.run("scancel", jobs["cancelled"])
    cluster.restart_controller(outage=5)
    assert run.finish() == 1, run.text
    return run, jobs


@pytest.mark.parametrize(
    ("fault", "state", "reason"),
    [
        ("fails", "FAILED", "exit code"),
        ("hangs", "TIMEOUT", "DUE TO TIME LIMIT"),
        ("memory", "FAILED", "exceeded memory limit"),
        ("cancelled", "CANCELLED", "CANCELLED AT"),
    ],
)
def test_error_names_rule_job_reason_and_log(broken, fault, state, reason):
    run, jobs = broken
    (failure,) = [failure for failure in failures(run.text) if failure.job == jobs[fault]]
    assert (failure.rule, failure.state) == ("train_ppo", state)
    assert reason in failure.reason
    assert failure.logs[0] == f"logs/runs/faulty/seed{SEEDS[fault]}/train_ppo.log"
    assert failure.logs[1].endswith(f"/{jobs[fault]}.log")
    listed = run.text.split("Slurm jobs that failed: 4\n")[1]
    assert str(failure) in listed


def test_slurm_itself_restarts_the_job_of_a_dead_node(broken, folder):
    run, jobs = broken
    assert f"external_jobid: {jobs['node']}\n" not in run.text
    assert (folder / TARGETS[SEEDS["node"]]).exists() and went_on(folder, "node")


@pytest.fixture(scope="module")
def recovered(broken, cluster, folder, start) -> Run:
    """The same command with a node drained; Snakemake killed while its jobs are at work; and once more."""
    cluster.run("scontrol", "update", "NodeName=gpu1", "State=DRAIN", "Reason=test")
    run, orphans = start("8000")
    assert set(orphans) == {"fails", "hangs", "memory", "cancelled"}
    for fault, job in orphans.items():
        wait_for(lambda job=job: cluster.processes(job, SCRIPT), f"{fault} to be at work", run=run)
        cluster.signal(job, SCRIPT, signal.SIGSTOP)
    assert {cluster.node_of(job) for job in orphans.values()} == {"gpu2"}, "a drained node got a job"
    assert run.process
    run.process.kill()
    run.process.wait()
    again, jobs = start("8000")
    assert {cluster.states()[job] for job in orphans.values()} == {"CANCELLED"}
    assert not set(jobs.values()) & set(orphans.values())
    assert again.finish() == 0, again.text
    cluster.run("scontrol", "update", "NodeName=gpu1", "State=RESUME")
    return again


def test_starting_again_finishes_every_run_without_a_gap(recovered, folder):
    for seed in SEEDS.values():
        rows = (folder / f"results/runs/faulty/seed{seed}/metrics.jsonl").read_text().splitlines()
        assert [json.loads(row)["step"] for row in rows] == list(range(1, STEPS + 1)), f"seed {seed}"


@pytest.mark.parametrize("fault", STRUCK)
def test_ppo_went_on_from_its_checkpoint(recovered, folder, fault):
    assert went_on(folder, fault)
