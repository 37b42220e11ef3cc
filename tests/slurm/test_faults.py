"""PPO hit by every fault that Slurm knows, all in one run; then the same command again, and once more.

One scenario in four acts, each a fixture: `interrupted`, `broken`, `killed`, `recovered`. The tests look at what each
left behind.
"""

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from workspace import write_config

from elkflow.common.files import sha256
from elkflow.orchestration.slurm import failures

from .conftest import SLOW, Run, edited_profile, wait_for

pytestmark = SLOW

SCRIPT = "train_ppo.py"
STEPS, CHECKPOINT = 400, 5  # many more than a run does between its first checkpoint and being stopped
SEEDS = {"fails": 0, "hangs": 1, "memory": 2, "cancelled": 3, "node": 4}  # what happens to the run of each seed
STRUCK = ("fails", "hangs", "cancelled", "node")  # at work; too little memory ends a run before it starts
TARGETS = [f"results/runs/faulty/seed{seed}/manifest.json" for seed in SEEDS.values()]


def checkpoint(folder: Path, fault: str) -> int:
    """The step of a run's newest checkpoint; 0 while it has none but that of the start."""
    saved = (folder / f"results/runs/faulty/seed{SEEDS[fault]}/checkpoints").glob("step-*/hashes.json")
    return max((int(path.parent.name.removeprefix("step-")) for path in saved), default=0)


def went_on_after(folder: Path, fault: str) -> int:
    """The step from whose checkpoint PPO went on when it was last started; 0 if it began anew."""
    log = (folder / f"logs/runs/faulty/seed{SEEDS[fault]}/train_ppo.log").read_text()
    found = re.search(r"resuming after step (\d+)", log)
    return int(found[1]) if found else 0


def upstream(folder: Path) -> dict[str, str]:
    """Hash and time of everything made before PPO."""
    made = [path for path in (folder / "results").rglob("*") if path.is_file() and "runs" not in path.parts]
    return {str(path): f"{sha256(path)} {path.stat().st_mtime_ns}" for path in made}


@pytest.fixture(scope="module")
def before(finished, folder) -> dict[str, str]:
    return upstream(folder)


@pytest.fixture(scope="module")
def start(cluster, before, folder) -> Callable:
    """Start a longer run of five seeds, of which only PPO is left to do; nothing is tried twice."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (run,) = config["runs"].values()
    run["ppo"] |= {"steps": STEPS, "checkpoint_every": CHECKPOINT, "evaluate_every": STEPS}
    config["runs"] = {"faulty": run | {"seeds": list(SEEDS.values())}}
    write_config(folder / "faulty.yaml", config)

    def begin(memory: str = "8000") -> tuple[Run, dict[str, str]]:
        """The Snakemake at work, and the Slurm job of every run that is not finished."""
        profile = edited_profile(folder / "faulty", {"train_ppo": memory}, account="", gpus=1)
        run = Run(cluster, folder, profile, ["--configfile", "faulty.yaml"]).start("--retries", "0", *TARGETS)
        left = {fault: seed for fault, seed in SEEDS.items() if not (folder / TARGETS[seed]).exists()}
        names = {fault: f"rule_train_ppo/faulty_{seed}" for fault, seed in left.items()}
        wait_for(lambda: set(names.values()) <= set(run.jobs()), "the jobs", run=run)
        return run, {fault: run.jobs()[name] for fault, name in names.items()}

    return begin


@pytest.fixture(scope="module")
def hold(cluster, folder) -> Callable:
    """Stop runs at work as soon as each has a checkpoint, so that none is over before all are there."""

    def stop_all(run: Run, jobs: dict[str, str], old: set[int] = frozenset()) -> None:
        """`old` are processes that are to be gone first."""
        waiting = set(jobs)

        def stopped() -> bool:
            for fault in [fault for fault in waiting if checkpoint(folder, fault)]:
                if set(cluster.processes(jobs[fault], SCRIPT)) - old:
                    cluster.signal(jobs[fault], SCRIPT, signal.SIGSTOP)
                    waiting.remove(fault)
            return not waiting

        wait_for(stopped, "a checkpoint of every run", run=run)

    return stop_all


@pytest.fixture(scope="module")
def interrupted(cluster, start) -> dict[str, str]:
    """Ctrl-C as soon as all jobs run; the jobs."""
    run, jobs = start()
    wait_for(lambda: {cluster.states()[job] for job in jobs.values()} == {"RUNNING"}, "the jobs to run", run=run)
    run.process.send_signal(signal.SIGINT)
    assert run.finish() == 1, run.text
    return jobs


def test_ctrl_c_cancels_the_jobs(interrupted, cluster):
    wait_for(lambda: {cluster.states()[job] for job in interrupted.values()} == {"CANCELLED"}, "the jobs to be gone")


@pytest.fixture(scope="module")
def broken(interrupted, cluster, start, hold) -> tuple[Run, dict[str, str]]:
    """Every run hit by its fault, the controller restarted meanwhile."""
    run, jobs = start(f"400 if wildcards.get('seed') == '{SEEDS['memory']}' else 8000")
    struck = {fault: jobs[fault] for fault in STRUCK}
    hold(run, struck)
    old = {process for job in struck.values() for process in cluster.processes(job, SCRIPT)}
    node = cluster.facts(jobs["node"])["NodeList"]
    lost = {fault: job for fault, job in struck.items() if cluster.facts(job)["NodeList"] == node}
    cluster.fail_node(node)  # Slurm starts its jobs again
    hold(run, lost, old)
    cluster.signal(jobs["node"], SCRIPT, signal.SIGCONT)
    cluster.signal(jobs["fails"], SCRIPT, signal.SIGKILL)
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
    assert (folder / TARGETS[SEEDS["node"]]).exists() and went_on_after(folder, "node") >= CHECKPOINT


@pytest.fixture(scope="module")
def killed(broken, cluster, start, hold) -> dict[str, str]:
    """The same command with a node drained, and Snakemake killed at work: the jobs that it leaves."""
    cluster.run("scontrol", "update", "NodeName=gpu1", "State=DRAIN", "Reason=test")
    run, jobs = start()
    hold(run, jobs)
    run.process.kill()
    run.process.wait()
    return jobs


def test_finished_runs_are_not_repeated(killed):
    assert set(killed) == {"fails", "hangs", "memory", "cancelled"}


def test_a_drained_node_gets_no_job(killed, cluster):
    assert {cluster.facts(job)["NodeList"] for job in killed.values()} == {"gpu2"}


@pytest.fixture(scope="module")
def recovered(killed, cluster, start) -> dict[str, str]:
    """The same command once more, the node where all its jobs run drained under them; these jobs."""
    run, jobs = start()
    wait_for(lambda: {cluster.states()[job] for job in jobs.values()} == {"RUNNING"}, "the jobs to run", run=run)
    cluster.run("scontrol", "update", "NodeName=gpu2", "State=DRAIN", "Reason=test")
    cluster.run("scontrol", "update", "NodeName=gpu1", "State=RESUME")
    assert cluster.run("sinfo", "--noheader", "--nodes", "gpu2", "--format", "%t").split()[0] == "drng"
    assert run.finish() == 0, run.text
    cluster.run("scontrol", "update", "NodeName=gpu2", "State=RESUME")
    return jobs


def test_jobs_of_a_killed_snakemake_are_ended_before_the_next_ones_start(killed, recovered, cluster):
    old, new = ([cluster.facts(job) for job in jobs.values()] for jobs in (killed, recovered))
    assert {job["JobState"] for job in old} == {"CANCELLED"}
    assert max(job["EndTime"] for job in old) <= min(job["SubmitTime"] for job in new)


def test_jobs_on_a_drained_node_end_in_peace(recovered, cluster):
    facts = [cluster.facts(job) for job in recovered.values()]
    assert {(job["NodeList"], job["JobState"], job["Restarts"]) for job in facts} == {("gpu2", "COMPLETED", "0")}


@pytest.mark.parametrize("fault", SEEDS)
def test_ppo_goes_on_from_its_checkpoint_to_the_end_without_a_gap(recovered, folder, fault):
    assert went_on_after(folder, fault) >= CHECKPOINT
    rows = (folder / f"results/runs/faulty/seed{SEEDS[fault]}/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(STEPS + 1))  # 0: before training


def test_no_finished_stage_is_repeated(recovered, before, folder):
    assert upstream(folder) == before
