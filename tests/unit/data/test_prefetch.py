"""What `snakemake prefetch` fetches and records, and that nothing else is needed afterwards."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from hub_client import NEW, OLD, script, section
from workspace import ROOT, make_workspace, write_config

from elkflow.common.files import read_json, sha256


def test_prefetch_records_the_commit_behind_a_branch(hub, tmp_path):
    given = ["--datasets", json.dumps({"rows": section("main")}), "--record", tmp_path / "prefetched.json"]
    done = script("prefetch", hub, tmp_path, *given)
    assert done.returncode == 0, done.stderr
    (record,) = read_json(tmp_path / "prefetched.json")["datasets"].values()
    assert record["revision"] == "main" and record["commit"] == NEW
    assert record["rows"] == {"train": 200, "val": 60}
    assert f"'main' is not a commit and can move; to pin these rows, set `revision: {NEW}`" in done.stderr


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A tiny workflow whose model and rows are on the hub."""
    folder = make_workspace(tmp_path_factory.mktemp("prefetch"))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (model,) = config["models"].values()
    del model["path"]
    model["hub"] = {"id": "me/model", "revision": OLD}
    (dataset,) = config["datasets"].values()
    config["datasets"] = {"countries": section(OLD) | {"wordings": dataset["wordings"], "answers": ["No", "Yes"]}}
    write_config(folder / "config.yaml", config)
    return folder


def test_after_prefetch_everything_is_made_without_a_network(hub, workspace, tmp_path):
    checkpoint = workspace / "model"
    hub.add("me/model", {path.name: path.read_bytes() for path in checkpoint.iterdir()}, OLD)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    clean["PATH"] = f"{Path(sys.executable).parent}:{clean['PATH']}"

    def snakemake(*targets, **variables):
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), *targets, "--cores", "1"]
        command += ["--directory", str(workspace), "--configfile", str(workspace / "config.yaml")]
        environment = clean | hub.environment(tmp_path / "home") | variables
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    done = snakemake("prefetch")
    assert done.returncode == 0, done.stderr
    results = workspace / "results"
    assert read_json(results / "prefetched.json")["datasets"]["countries"]["commit"] == OLD
    fetched = results / "models" / "smollm2" / "checkpoint" / "model.safetensors"
    assert sha256(fetched) == sha256(checkpoint / "model.safetensors")
    assert {method for method, path, _ in hub.calls if path.endswith("model.safetensors")} == {"HEAD", "GET"}

    before = len(hub.calls)
    prompts = "results/prompts/smollm2/countries/training/val.parquet"
    done = snakemake(prompts, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert pq.read_table(workspace / prompts).num_rows == 10
    assert len(hub.calls) == before
