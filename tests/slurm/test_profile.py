"""What the Slurm profile asks for, read from dry-runs: needs no Slurm."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from workspace import write_config

from .conftest import ROOT, edited_profile

# rule, partition, GPUs, processes, CPUs, MB, minutes, jobs: config/thesis.yaml on a node of eight GPUs
THESIS = """
split_dataset     cpu  0  1   1    8000    60   1
render_prompts    cpu  0  1   1    8000    60   3
extract_hiddens   gpu  1  1   8   48000   240   3
train_probe       cpu  0  1  16   64000   120   1
score_answers     cpu  0  1   4   32000    60   2
train_ppo         gpu  8  8  64  288000  1440   1
merge_lora        cpu  0  1   8   64000    60   1
evaluate_base     gpu  1  1   8   64000   720   1
evaluate_tuned    gpu  1  1   8   64000   720   1
"""
# the rules that only other settings need: a probe read on another's rows, scoring in four pieces, fresh probes
OPTIONAL = """
extract_tuned_hiddens  gpu  1  1   8   48000   240   2
fresh_probe            cpu  0  1  16   64000   120   1
score_shard            cpu  0  1   4   32000    60   8
transfer_probe         cpu  0  1  16   64000   120   1
"""
LOCAL = {"all", "fetch_model", "fetch_questions", "without_rl", "plan", "summarise"}
"""Rules that run where Snakemake runs. A dry-run shows requests of theirs, too."""


def requests(folder: Path, *arguments: str) -> Counter[str]:
    """Each request that a dry-run shows, in the columns above."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--dry-run", *arguments]
    done = subprocess.run(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    found: Counter[str] = Counter()
    for name, block in re.findall(r"^rule (\w+):\n((?:    .*\n)+)", done.stdout, flags=re.MULTILINE):
        (line,) = re.findall(r"^    resources: (.*)", block, flags=re.MULTILINE)
        asked = dict(item.split("=", 1) for item in line.split(", "))
        threads = re.search(r"^    threads: (\d+)", block, flags=re.MULTILINE)
        columns = [name, asked["slurm_partition"], asked.get("gpu", "0"), asked.get("processes", "1")]
        columns += [threads[1] if threads else "1", asked["mem_mb"], asked["runtime"]]
        found[" ".join(columns)] += 1
    return found


def table(text: str) -> Counter[str]:
    rows = [line.split() for line in text.strip().splitlines()]
    return Counter({" ".join(row[:-1]): int(row[-1]) for row in rows})


@pytest.fixture(scope="module")
def thesis() -> list[str]:
    return ["--configfile", str(ROOT / "config" / "thesis.yaml")]


def test_the_thesis_asks_for_what_the_golden_table_says(tmp_path, thesis):
    found = requests(tmp_path, *thesis, "--profile", str(ROOT / "profiles" / "slurm"))
    assert Counter({row: n for row, n in found.items() if row.split()[0] not in LOCAL}) == table(THESIS)


def test_every_rule_stands_in_a_table_or_runs_where_snakemake_runs():
    text = "".join(file.read_text() for file in (ROOT / "workflow" / "rules").glob("*.smk"))
    parts = re.split(r"^(?:rule|use rule \w+ as) (\w+)", text, flags=re.MULTILINE)
    local = {name: "\n    localrule: True\n" in block for name, block in zip(parts[1::2], parts[2::2], strict=True)}
    targets = {"prefetch", "push_datasets", "push_dataset"}
    assert {name for name in local if local[name]} - targets == LOCAL - {"all"}
    asking = {row.split()[0] for row in [*table(THESIS), *table(OPTIONAL)]}
    assert {name for name in local if not local[name]} == asking | {"mix_datasets", "mix_prompts"}  # on defaults


def test_optional_rules_ask_for_what_their_table_says(tmp_path, thesis):
    config = yaml.safe_load(Path(thesis[1]).read_text())
    config["probes"]["twin"] = config["probes"]["truth"]
    config["probes"]["truth"] = config["probes"]["twin"] | {"transfer": ["twin"]}
    config["evaluation"]["fresh_probe"] = True
    write_config(tmp_path / "config.yaml", config)
    arguments = ["--configfile", "config.yaml", "--profile", str(ROOT / "profiles" / "slurm")]
    found = requests(
        tmp_path, *arguments, "--set-scatter", "scoring=4", "--", "all", "results/probes/truth/transfer.csv"
    )
    rules = [row.split()[0] for row in table(OPTIONAL)]
    assert Counter({row: n for row, n in found.items() if row.split()[0] in rules}) == table(OPTIONAL)


def test_the_block_is_all_that_a_user_edits(tmp_path, thesis):
    profile = edited_profile(tmp_path / "profile", account="lab", cpu_partition="thin", gpu_partition="fat", gpus=2)
    found = requests(tmp_path, *thesis, "--profile", str(profile))
    assert {row.split()[1] for row in found} == {"thin", "fat"}
    (ppo,) = [row.split() for row in found if row.startswith("train_ppo")]
    assert ppo[1:6] == ["fat", "2", "2", "16", "96000"]


def test_a_named_profile_is_found(tmp_path, thesis, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    subprocess.run(["make", "--directory", ROOT, "slurm-profile"], check=True, capture_output=True)
    assert requests(tmp_path, *thesis, "--profile", "slurm") == requests(
        tmp_path, *thesis, "--profile", str(ROOT / "profiles" / "slurm")
    )
