"""The whole workflow among secrets and hostile names: nothing is told, nothing runs, nothing is written elsewhere."""

import shutil

import pytest
import yaml

from .conftest import SECRETS, snakemake


def test_tokens_reach_no_file_and_no_command_line(finished, commands):
    """Results, logs, benchmarks and Snakemake's own notes, of a run that had the tokens in its environment."""
    files = [path for path in finished.rglob("*") if path.is_file()]
    assert {"results", "logs", "benchmarks", ".snakemake"} <= {path.relative_to(finished).parts[0] for path in files}
    for name, secret in SECRETS.items():
        assert not [path for path in files if secret.encode() in path.read_bytes()], name
        assert not [command for command in commands if secret.encode() in command], name
    assert any(b"train_ppo.py" in command for command in commands), "looked at no command of the workflow"


@pytest.mark.parametrize(
    "target",
    [
        "results/data/../../pwned/manifest.json",
        "results/probes/truth/../../../pwned/probe.json",
        "results/models/a/b/manifest.json",
        "results/rewards/truth/countries/../../../pwned.parquet",
        "results/runs/quickstart/seed0/../../../../pwned/merged.json",
        "results/data/$(touch pwned)/manifest.json",
    ],
)
def test_a_wildcard_takes_no_path(finished, target):
    done = snakemake(finished, "--cores", "1", target, check=False)
    assert done.returncode == 1 and "MissingRuleException" in done.stdout
    assert not list(finished.parent.rglob("*pwned*"))


def test_a_hostile_path_is_only_a_path(finished, tmp_path):
    name = "-rf $(touch pwned) `touch pwned`; touch pwned & 'x' \"y\"  m\u043edel"
    shutil.copytree(finished / "model", tmp_path / name)
    config = yaml.safe_load((finished / "config.yaml").read_text())
    (model,) = config["models"]
    config["models"][model]["path"] = name
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    snakemake(tmp_path, "--cores", "1", f"results/models/{model}/manifest.json")
    made = (tmp_path / "results" / "models" / model / "checkpoint" / "model.safetensors").read_bytes()
    assert made == (finished / "model" / "model.safetensors").read_bytes()
    assert not list(tmp_path.rglob("pwned"))
