"""Elsewhere: a read-only checkout, another workflow's module, a cache shared between workflows."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from workspace import ROOT, make_workspace

PARTS = ("Snakefile", "workflow", "config", "envs", "profiles")
SPLITS = ("train", "ppo", "val")
REWARDS = "results/rewards/truth/countries/ppo.parquet"
BASE = "results/evaluations/base/smollm2/countries/control/results.json"
CACHED = ["--cache", "extract_hiddens", "evaluate_base", "--"]


def snakemake(folder: Path, *arguments: str, **variables: str) -> str:
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--printshellcmds", *arguments]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"} | variables
    done = subprocess.run(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """The source files, for reading only."""
    if not os.environ.get("ELKFLOW_TEST_SLOW"):
        pytest.skip("runs the workflow three times: set ELKFLOW_TEST_SLOW=1")
    checkout = tmp_path_factory.mktemp("checkout")
    for name in PARTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, checkout / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        else:
            shutil.copy(source, checkout / name)
    for path in [checkout, *checkout.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    return checkout


@pytest.fixture(scope="module")
def elsewhere(checkout, tmp_path_factory) -> Path:
    """A finished run of a read-only checkout, in a folder of its own, as far as the reward table."""
    folder = make_workspace(tmp_path_factory.mktemp("elsewhere"))
    before = contents(checkout)
    cache = tmp_path_factory.mktemp("cache")
    arguments = ["--directory", str(folder), "--configfile", str(folder / "config.yaml")]
    snakemake(
        checkout, *arguments, *CACHED, REWARDS, BASE, SNAKEMAKE_OUTPUT_CACHE=str(cache), PYTHONDONTWRITEBYTECODE="1"
    )
    assert contents(checkout) == before, "the checkout was written to"
    (folder / "cache").symlink_to(cache)
    return folder


def contents(folder: Path) -> dict[str, int]:
    # root may write anywhere, so look whether anybody did
    return {str(path): path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def test_a_read_only_checkout_works_in_another_folder(elsewhere):
    assert (elsewhere / REWARDS).stat().st_size > 0


def test_every_split_has_states_of_its_own_in_the_cache(elsewhere):
    """The three splits of a dataset come from one job: the cache must not take one for another."""
    manifests = [elsewhere / f"results/hiddens/smollm2/countries/training/{split}.manifest.json" for split in SPLITS]
    hashes = {json.loads(manifest.read_text())["outputs"]["states"]["sha256"] for manifest in manifests}
    assert len(hashes) == len(SPLITS)


def test_another_workflow_imports_it_as_a_module(checkout, elsewhere):
    (elsewhere / "Snakefile").write_text(
        f"""
configfile: "config.yaml"


module elkflow:
    snakefile:
        "{checkout}/Snakefile"
    config:
        config


use rule * from elkflow as elkflow_*


rule mine:
    default_target: True
    input:
        "{REWARDS}",
    output:
        "mine.txt",
    shell:
        "wc -c {{input}} >{{output}}"
"""
    )
    text = snakemake(elsewhere, "--forcerun", "elkflow_score_answers")
    assert (elsewhere / "mine.txt").read_text().split()[1] == REWARDS
    assert "rule elkflow_score_answers" in text and "rule elkflow_train_probe" not in text


def test_states_and_base_evaluations_come_from_the_cache_in_another_folder(checkout, elsewhere, tmp_path):
    folder = tmp_path / "second"
    shutil.copytree(elsewhere / "model", folder / "model")
    shutil.copy(elsewhere / "config.yaml", folder)
    states = "results/hiddens/smollm2/countries/training/val.safetensors"
    arguments = ["--snakefile", str(checkout / "Snakefile"), "--configfile", "config.yaml", "--notemp"]
    text = snakemake(
        folder, *arguments, *CACHED, states, BASE, SNAKEMAKE_OUTPUT_CACHE=str((elsewhere / "cache").resolve())
    )
    for name in (states, BASE):
        assert (folder / name).is_symlink() and f"Symlinking output file {name} from cache" in text
    assert (folder / BASE).read_bytes() == (elsewhere / BASE).read_bytes()
    assert "to cache." not in text, "something was computed again"
