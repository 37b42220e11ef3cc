"""A user's own files in a finished workflow: an edit reruns what is made of the file and nothing else."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from mixed import mixed_config
from workspace import make_workspace, tiny_config, write_config

from elkflow.common.files import read_json, sha256
from elkflow.common.paths import PROMPTS, RESOURCES, SCRIPTS

from .conftest import planned, snakemake

AFTER_TRAINING = {"train_ppo", "merge_lora", "evaluate_tuned", "summarise"}
REWARD = '''"""Reward of short answers."""


def brevity(prompts, answers):
    return [1.0 / (1.0 + len(answer)) for answer in answers]
'''


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """A finished run on files of the user's: facts for the probe; rows, a template and a reward for the policy."""
    folder = make_workspace(tmp_path_factory.mktemp("own"))
    config = mixed_config(tiny_config(), folder)
    del config["datasets"]["both"]
    (folder / "facts.csv").write_bytes((RESOURCES / "countries.csv").read_bytes())
    (folder / "own.yaml").write_bytes((PROMPTS / "qnli_training.yaml").read_bytes())
    (folder / "own_reward.py").write_text(REWARD)
    config["datasets"]["countries"]["facts"] = {"table": "facts.csv"}
    config["datasets"]["rivers"]["wordings"]["training"] = "own.yaml"
    config["probes"]["truth"]["dataset"] = "countries"
    run = config["runs"]["quickstart"]
    run |= {"dataset": "rivers", "reward": "own_reward:brevity", "ppo": run["ppo"] | {"actions": "sampled"}}
    write_config(folder / "config.yaml", config)
    snakemake(folder, "--cores", "2")
    assert planned(folder) == set()
    return folder


@contextmanager
def edited(file: Path, old: str, new: str) -> Iterator[None]:
    """The first `old` in a file replaced, for a while."""
    before = file.read_text(encoding="utf-8")
    assert old in before
    file.write_text(before.replace(old, new, 1), encoding="utf-8")
    try:
        yield
    finally:
        file.write_text(before, encoding="utf-8")


def jobs(folder: Path) -> set[str]:
    """Rules that would run, those about one dataset with its name."""
    found, name = set(), ""
    for line in snakemake(folder, "--dry-run").stdout.splitlines():
        if line.startswith(("rule ", "localrule ")):
            name = line.split()[1].rstrip(":")
        elif line.startswith("    wildcards: ") and name:
            values = dict(part.split("=") for part in line.removeprefix("    wildcards: ").split(", "))
            found.add(f"{name} {values['dataset']}" if "dataset" in values else name)
            name = ""
        elif line.startswith("    resources: ") and name and name != "all":
            found.add(name)
            name = ""
    return found


OF_RIVERS = {"render_prompts rivers", "extract_hiddens rivers", "score_answers rivers", "evaluate_base rivers"}


def test_a_row_of_a_datasets_file(own):
    """The probe was fitted on other rows, and stays."""
    with edited(own / "rivers.csv", "Who owns river 6?", "Whose is river 6?"):
        assert jobs(own) == {"split_dataset rivers"} | OF_RIVERS | AFTER_TRAINING | {"without_rl"}
    assert jobs(own) == set()


def test_a_template(own):
    """Splits stay as they are."""
    with edited(own / "own.yaml", "Question:", "The question:"):
        assert jobs(own) == OF_RIVERS | AFTER_TRAINING | {"without_rl"}
    assert jobs(own) == set()


def test_a_row_of_the_table_of_facts(own):
    """The probe is fitted anew, and everything that it rewards; the rows that the policy is asked about stay."""
    row = (own / "facts.csv").read_text(encoding="utf-8").splitlines()[-1]
    with edited(own / "facts.csv", row + "\n", ""):
        of_countries = {"split_dataset countries", "render_prompts countries", "extract_hiddens countries"}
        rewarded = {"train_probe", "extract_hiddens rivers", "score_answers rivers", "without_rl"}
        assert jobs(own) == of_countries | rewarded | AFTER_TRAINING
    assert jobs(own) == set()


def test_a_users_reward_module(own):
    with edited(own / "own_reward.py", "1.0 +", "2.0 +"):
        assert jobs(own) == AFTER_TRAINING
    assert jobs(own) == set()


def test_manifests_name_the_sources(own):
    for dataset, source in (("rivers", "rivers.csv"), ("countries", "facts.csv")):
        inputs = read_json(own / "results" / "data" / dataset / "manifest.json")["inputs"]
        assert inputs.pop(source) == {"path": f"../../../{source}", "sha256": sha256(own / source)}
        assert [Path(name).name for name in inputs] == ([] if dataset == "rivers" else ["countries.yaml"])


def test_verify_goes_back_to_the_sources(own):
    def verify() -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, SCRIPTS / "verify.py"], cwd=own, capture_output=True, text=True)

    assert verify().returncode == 0
    for source, dataset in (("rivers.csv", "rivers"), ("facts.csv", "countries")):
        with edited(own / source, "\n", "\n\n"):
            done = verify()
        assert done.returncode == 1
        assert f"data/{dataset}/manifest.json was made from ../{source} with hash" in done.stderr
    assert verify().returncode == 0


def test_a_config_that_names_other_files_of_the_same_content_splits_anew(own):
    config = yaml.safe_load((own / "config.yaml").read_text(encoding="utf-8"))
    (own / "copy.csv").write_bytes((own / "rivers.csv").read_bytes())
    config["datasets"]["rivers"]["path"] = "copy.csv"
    write_config(own / "other.yaml", config)
    assert "split_dataset" in planned(own, "--configfile", str(own / "other.yaml"))
