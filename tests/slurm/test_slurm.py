"""The workflow on a real Slurm: whole, broken in every way that Slurm knows, and started again."""

import json
import re
import signal
from pathlib import Path

import pytest
import yaml
from workspace import make_workspace, write_config

from elkflow.files import sha256

from .conftest import Run, edited_profile, wait_for

STEPS = 100  # enough for every fault to find PPO at work
SEEDS = {"fails": 0, "hangs": 1, "memory": 2, "cancelled": 3, "node": 4}  # what happens to the run of each seed
TARGETS = [f"results/runs/faulty/seed{seed}/manifest.json" for seed in SEEDS.values()]


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("cluster"))


@pytest.fixture(scope="session")
def finished(cluster, folder) -> Run:
    """The whole workflow, run through the profile with two GPUs and so two processes for PPO."""
    profile = edited_profile(folder / "profile", account="", gpus=2)
    run = Run(cluster, folder, profile, ["--configfile", "config.yaml"]).start()
    assert run.finish(1200) == 0, run.text
    return run


def test_whole_workflow_reaches_the_verdict(finished, folder):
    verdict = json.loads((folder / "results" / "summary" / "verdict.json").read_text())
    assert verdict["evaluations"] and verdict["probes"]
    submitted = {name.split("/")[0] for name in finished.jobs()}
    assert {"rule_extract_hiddens", "rule_train_probe", "rule_train_ppo", "rule_merge_lora"} <= submitted
    assert "rule_fetch_model" not in submitted, "compute nodes often have no network"


def test_ppo_ran_as_two_processes_of_one_job_with_two_gpus(finished, folder):
    job = finished.jobs()["rule_train_ppo/quickstart_0"]
    assert finished.cluster.node_of(job).startswith("gpu")
    (manifest,) = (folder / "results" / "runs").glob("*/seed0/manifest.json")
    assert json.loads(manifest.read_text())["facts"]["processes"] == 2


def test_running_again_submits_nothing(finished, cluster, folder):
    again = Run(cluster, folder, finished.profile, finished.arguments).start()
    assert again.finish() == 0 and "Nothing to be done" in again.text and not again.jobs()


def test_report_is_written(finished, cluster, folder):
    run = Run(cluster, folder, finished.profile, finished.arguments).start("--report", "report.html")
    assert run.finish() == 0, run.text
    assert (folder / "report.html").stat().st_size > 100_000


def upstream(folder: Path) -> dict[str, str]:
    """Hash and time of everything made before PPO."""
    made = [path for path in (folder / "results").rglob("*") if path.is_file() and "runs" not in path.parts]
    return {str(path): f"{sha256(path)} {path.stat().st_mtime_ns}" for path in made}


def checkpoints(folder: Path, seed: int) -> list[Path]:
    return sorted((folder / f"results/runs/faulty/seed{seed}/checkpoints").glob("step-*/hashes.json"))


@pytest.fixture(scope="session")
def faulty(finished, folder) -> list[str]:
    """Arguments for a longer run of five seeds, of which only PPO is left to do."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (run,) = config["runs"].values()
    run["ppo"] |= {"steps": STEPS, "checkpoint_every": 5, "evaluate_every": 50}
    config["runs"] = {"faulty": run | {"seeds": list(SEEDS.values())}}
    write_config(folder / "faulty.yaml", config)
    return ["--configfile", "faulty.yaml"]


@pytest.fixture(scope="session")
def broken(cluster, faulty, folder) -> tuple[Run, dict[str, str]]:
    """Every seed hit by another fault once its first checkpoint stands, the controller restarted meanwhile."""
    profile = edited_profile(folder / "small", account="", gpus=1)
    file = profile / "profile.v9+.yaml"
    little = f"400 if wildcards.get('seed') == '{SEEDS['memory']}' else 8000"
    text, count = re.subn(r"(  train_ppo:\n(?:    .*\n)*?    mem_mb: ).*", rf"\g<1>{little}", file.read_text())
    assert count == 1
    file.write_text(text)
    before = upstream(folder)
    run = Run(cluster, folder, profile, faulty).start("--retries", "0", *TARGETS)
    names = {fault: f"rule_train_ppo/faulty_{seed}" for fault, seed in SEEDS.items()}
    wait_for(lambda: set(names.values()) <= set(run.jobs()), "five jobs", run=run)
    jobs = {fault: run.jobs()[name] for fault, name in names.items()}
    for fault, seed in SEEDS.items():
        if fault != "memory":  # the others are well on their way when it strikes
            wait_for(lambda seed=seed: checkpoints(folder, seed), f"seed {seed}'s first checkpoint", run=run)
    # takes every job of the node along; Slurm starts them again
    node = cluster.node_of(jobs["node"])
    cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
    for fault in ("fails", "hangs", "cancelled", "node"):
        wait_for(lambda fault=fault: cluster.processes(jobs[fault], "train_ppo.py"), f"{fault} to be back", run=run)
    cluster.run("scontrol", "update", f"JobId={jobs['hangs']}", "TimeLimit=1")
    cluster.signal(jobs["fails"], "train_ppo.py", signal.SIGKILL)
    cluster.signal(jobs["hangs"], "train_ppo.py", signal.SIGSTOP)
    cluster.run("scancel", jobs["cancelled"])
    cluster.restart_controller(outage=5)
    assert run.finish(400) == 1, run.text
    assert upstream(folder) == before, "a finished stage was repeated"
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
    (error,) = [
        part
        for part in re.split(r"^Error in (?=rule )", run.text, flags=re.MULTILINE)[1:]
        if f"external_jobid: {jobs[fault]}\n" in part
    ]
    assert error.startswith("rule train_ppo:")
    assert f"SLURM-job '{jobs[fault]}' failed, SLURM status is: '{state}'" in error
    assert f"logs/runs/faulty/seed{SEEDS[fault]}/train_ppo.log" in error
    (log,) = re.findall(rf"\S+/{jobs[fault]}\.log", error)
    assert reason in Path(log).read_text()


def test_slurm_itself_restarts_the_job_of_a_dead_node(broken, folder):
    run, jobs = broken
    assert f"external_jobid: {jobs['node']}\n" not in run.text
    assert went_on(folder, SEEDS["node"])


@pytest.fixture(scope="session")
def recovered(broken, faulty, cluster, folder) -> Run:
    """The same command with a node drained; killed at work; and once more."""
    profile = edited_profile(folder / "small", account="", gpus=1)
    before = upstream(folder)
    cluster.run("scontrol", "update", "NodeName=gpu1", "State=DRAIN", "Reason=test")
    run = Run(cluster, folder, profile, faulty).start("--retries", "0", *TARGETS)
    seed = SEEDS["cancelled"]
    wait_for(lambda: f"rule_train_ppo/faulty_{seed}" in run.jobs(), "the job", run=run)
    wait_for(lambda: went_on(folder, seed), "PPO to go on from its checkpoint", run=run)
    assert all(cluster.node_of(job) in ("gpu2", "") for job in run.jobs().values()), "a drained node got a job"
    assert run.process
    run.process.kill()
    run.process.wait()
    orphans = {job for job, state in cluster.states().items() if state in ("RUNNING", "PENDING")}
    again = Run(cluster, folder, profile, faulty).start("--retries", "0", *TARGETS)
    assert again.finish(400) == 0, again.text
    states = cluster.states()
    assert not orphans or {states[job] for job in orphans} <= {"CANCELLED", "COMPLETED"}
    assert upstream(folder) == before, "a finished stage was repeated"
    return again


def went_on(folder: Path, seed: int) -> bool:
    """Whether the newest log of a seed says that PPO went on from a checkpoint."""
    log = folder / f"logs/runs/faulty/seed{seed}/train_ppo.log"
    return log.exists() and "going on after step" in log.read_text()


def test_starting_again_finishes_every_run_without_a_gap(recovered, folder):
    for seed in SEEDS.values():
        rows = (folder / f"results/runs/faulty/seed{seed}/metrics.jsonl").read_text().splitlines()
        steps = [json.loads(row)["step"] for row in rows]
        assert steps == list(range(1, STEPS + 1)), f"seed {seed}"


def test_ppo_went_on_from_its_checkpoint(recovered, folder):
    for fault in ("fails", "hangs", "cancelled", "node"):
        assert went_on(folder, SEEDS[fault]), fault


def test_more_memory_is_asked_for_after_a_memory_kill(finished, cluster, folder):
    """As shipped: a job killed for memory is tried again with more, and succeeds without anybody's help."""
    profile = edited_profile(folder / "growing", account="", gpus=1)
    file = profile / "profile.v9+.yaml"
    text, count = re.subn(r"(  score_answers:\n    mem_mb: ).*", r"\g<1>250 + 4000 * (attempt - 1)", file.read_text())
    assert count == 1
    file.write_text(text)
    run = Run(cluster, folder, profile, finished.arguments)
    run.start("--forcerun", "score_answers", "--until", "score_answers")
    assert run.finish(400) == 0, run.text
    assert "SLURM status is: 'FAILED'" in run.text and "Trying to restart job" in run.text


def test_four_scoring_shards_run_side_by_side_and_merge_to_the_same_bytes(finished, cluster, folder):
    whole = folder / "results/rewards/truth/countries/ppo.parquet"
    before = whole.read_bytes()
    whole.unlink()
    run = Run(cluster, folder, finished.profile, finished.arguments)
    run.start("--set-scatter", "scoring=4", "--", "results/rewards/truth/countries/ppo.parquet")
    assert run.finish(400) == 0, run.text
    shards = [job for name, job in run.jobs().items() if name.startswith("rule_score_shard/")]
    assert len(shards) == 4
    assert whole.read_bytes() == before
    spans = [cluster.span(job) for job in shards]
    assert max(start for start, _ in spans) < min(end for _, end in spans), "one after another, not side by side"
