"""Every file that one stage leaves and another reads, damaged: the reader says which, and computes nothing."""

import importlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from elkflow.common.errors import UserError

from .conftest import snakemake


@dataclass(frozen=True)
class Stage:
    """A script, its arguments as the workflow gives them, and the results it reads."""

    script: str
    arguments: list[str]
    inputs: list[Path]


def stages(folder: Path) -> Iterator[Stage]:
    """The first job of every script, read from a dry-run of the whole workflow."""
    done, inputs = set(), ""
    for line in snakemake(folder, "--dry-run", "--printshellcmds", "--forceall").stdout.splitlines():
        if match := re.match(r"\s+input: (.*)", line):
            inputs = match[1]
        elif (match := re.match(r"Shell command: .*?/(\w+)\.py (.*) >logs/", line)) and match[1] not in done:
            done.add(match[1])
            expanded = subprocess.run(
                ["bash", "-c", f"printf '%s\\0' {match[2]}"], cwd=folder, capture_output=True, text=True, check=True
            ).stdout
            results = [folder / name for name in inputs.split(", ") if name.startswith("results/")]
            yield Stage(match[1], expanded.split("\0")[:-1], [path for path in results if path.exists()])


def files_of(path: Path) -> list[Path]:
    """A file, or the files of a folder."""
    return [path] if path.is_file() else [file for file in sorted(path.iterdir()) if not file.name.startswith(".")]


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.fixture(scope="module")
def copy(finished, tmp_path_factory) -> Path:
    """The finished folder again, for a test to spoil, with the hidden states that are removed once they are used."""
    folder = tmp_path_factory.mktemp("damaged")
    shutil.copytree(finished, folder, dirs_exist_ok=True)
    snakemake(folder, "--cores", "2", "--notemp", "--forcerun", "extract_hiddens", "--until", "extract_hiddens")
    return folder


def test_a_damaged_input_is_named_by_the_stage_that_reads_it(copy, monkeypatch):
    monkeypatch.chdir(copy)
    tried, wrong = set(), []
    for stage in stages(copy):
        main = importlib.import_module(stage.script).main
        for path in stage.inputs:
            manifest = path.name.endswith(
                ("manifest.json", "plan.json")
            )  # their hashes stand nowhere that a stage looks
            for file in files_of(path):
                whole = file.read_bytes()
                for damage in (cut,) if manifest else (cut, flip):
                    file.write_bytes(damage(whole))
                    try:
                        main(stage.arguments)
                    except UserError as error:
                        named = any(f"{part.name}: " in str(error) for part in (file, path))
                        wrong += [] if named else [f"{stage.script}: {file} ({damage.__name__}): {error}"]
                    except BaseException as error:
                        wrong.append(f"{stage.script}: {file} ({damage.__name__}): {error!r}")
                    else:
                        wrong.append(f"{stage.script}: {file} ({damage.__name__}): not noticed")
                    tried.add((stage.script, file.suffix, damage.__name__))
                file.write_bytes(whole)
    assert not wrong, "\n" + "\n".join(wrong)
    assert {script for script, *_ in tried} >= {"render_prompts", "extract_hiddens", "train_probe", "score_answers"}
    assert {script for script, *_ in tried} >= {"train_ppo", "merge_lora", "evaluate_model", "without_rl", "summarise"}
    assert {suffix for _, suffix, _ in tried} >= {".parquet", ".safetensors", ".json", ".jsonl", ".csv"}
