"""The workflow on a real Slurm: whole, through every kind of failure, in several processes and in shards."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
import yaml
from integration.conftest import tiny_config
from tiny import save_tiny_model

from .conftest import ROOT, Run, edited_profile, wait_for

STEPS = 60  # enough for every fault to find PPO at work after its first checkpoint


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A working folder with a tiny model and its config."""
    from elkflow.facts import questions

    folder = tmp_path_factory.mktemp("cluster")
    texts = [" ".join(map(str, row.values())) for row in questions().to_pylist()]
    prompts = [file.read_text(encoding="utf-8") for file in (ROOT / "workflow" / "prompts").glob("*.yaml")]
    model = save_tiny_model(folder / "model", [*texts, *prompts])
    (folder / "config.yaml").write_text(yaml.safe_dump(tiny_config(model)))
    return folder


@pytest.fixture(scope="session")
def finished(cluster, folder) -> Run:
    """The whole workflow, run through the profile with two processes for PPO."""
    profile = edited_profile(folder / "profile", account="", gpus=2)
    run = Run(cluster, folder, profile, ["--configfile", "config.yaml"]).start()
    assert run.finish(900) == 0, run.text
    return run


def test_whole_workflow_reaches_the_verdict(finished, folder):
    verdict = json.loads((folder / "results" / "summary" / "verdict.json").read_text())
    assert verdict["evaluations"] and verdict["probes"]
    submitted = {name.split("/")[0] for name in finished.jobs()}
    assert {"rule_extract_hiddens", "rule_train_probe", "rule_train_ppo", "rule_merge_lora"} <= submitted
    assert "rule_fetch_model" not in submitted, "compute nodes often have no network"


def test_ppo_ran_as_two_processes_of_one_job_with_two_gpus(finished, folder):
    job = next(job for name, job in finished.jobs().items() if name.startswith("rule_train_ppo/"))
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


FAULTS = {0: "fails", 1: "hangs", 2: "memory", 3: "cancelled", 4: "node"}


@pytest.fixture(scope="session")
def broken(finished, cluster, folder) -> Run:
    """Five seeds of a longer run, each hit by another fault once its first checkpoint stands; then the controller."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (run,) = config["runs"].values()
    run["ppo"] |= {"steps": STEPS, "checkpoint_every": 5}
    config["runs"] = {"faulty": run | {"seeds": list(FAULTS)}}
    (folder / "faulty.yaml").write_text(yaml.safe_dump(config))
    profile = edited_profile(folder / "faulty", account="", gpus=1)
    file = profile / "profile.v9+.yaml"
    (request,) = re.findall(r"train_ppo:\n(?:    .*\n)*?    mem_mb: (.*)\n", file.read_text())
    file.write_text(file.read_text().replace(request, f'300 if wildcards.get("seed") == "2" else 8000'))
    before = fingerprint(folder)
    targets = [f"results/runs/faulty/seed{seed}/manifest.json" for seed in FAULTS]
    run = Run(cluster, folder, profile, ["--configfile", "faulty.yaml"]).start("--retries", "0", *targets)

    jobs = {}
    for seed in FAULTS:
        wait_for(lambda seed=seed: f"rule_train_ppo/faulty_{seed}" in run.jobs(), f"seed {seed}'s job", run=run)
        jobs[seed] = run.jobs()[f"rule_train_ppo/faulty_{seed}"]
    cluster.run("scontrol", "update", f"JobId={jobs[1]}", "TimeLimit=1")
    for seed, fault in FAULTS.items():
        if fault == "memory":
            continue
        wait_for(lambda seed=seed: checkpoints(folder, seed), f"seed {seed}'s first checkpoint", run=run)
        if fault == "fails":
            cluster.signal(jobs[seed], "train_ppo.py", signal.SIGKILL)
        elif fault == "hangs":
            cluster.signal(jobs[seed], "train_ppo.py", signal.SIGSTOP)
        elif fault == "cancelled":
            cluster.run("scancel", jobs[seed])
        elif fault == "node":
            node = cluster.node_of(jobs[seed])
            cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
            cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
    cluster.restart_controller(outage=5)
    assert run.finish(300) == 1, run.text
    assert fingerprint(folder) == before, "a finished stage was touched"
    run.slurm_jobs = jobs
    return run
