"""Atomic writing, manifests, command lines and the list of a stage's source files."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest

from elkflow.common import cli, code_inputs, files, manifests
from elkflow.common.errors import UserError
from elkflow.config.base import Settings


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "table.json"
    files.write_json(target, {"old": 1})
    with pytest.raises(RuntimeError), files.atomic(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(target.read_text()) == {"old": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["table.json"]


def test_a_folder_is_replaced_whole(tmp_path):
    target = tmp_path / "model"
    for content in ("first", "second"):
        with files.atomic(target) as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert [file.name for file in target.iterdir()] == ["second"]


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "x.json", {"value": float("nan")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"PAR1 nonsense", b"\x00" * 64])
def test_a_damaged_table_is_named(tmp_path, content):
    path = tmp_path / "rows.parquet"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"rows\.parquet: not a readable parquet"):
        files.read_table(path)


def test_a_missing_column_is_named(tmp_path):
    files.write_table(pd.DataFrame({"id": ["a"]}), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match="column 'label' is missing; it has id"):
        files.read_table(tmp_path / "rows.parquet", ["id", "label"])


def test_a_folder_hash_sees_names_and_contents(tmp_path):
    (tmp_path / "a").write_text("1")
    first = files.sha256(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    second = files.sha256(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({first, second, files.sha256(tmp_path)}) == 3


def test_a_manifest_names_the_damaged_output(tmp_path):
    made, manifest = tmp_path / "made.txt", tmp_path / "manifest.json"
    made.write_text("whole")
    manifests.write_manifest(manifest, outputs={"made": made}, inputs={}, settings={"x": 1}, seed=3)
    assert manifests.check_manifest(manifest)["seed"] == 3
    made.write_text("hole")
    with pytest.raises(UserError, match=r"made\.txt: damaged"):
        manifests.check_manifest(manifest)
    made.unlink()
    with pytest.raises(UserError, match=r"made\.txt: missing"):
        manifests.check_manifest(manifest)


class Section(Settings):
    steps: int


@dataclass(frozen=True)
class Arguments:
    """Arguments of a test."""

    settings: Section
    rows: list[Path]
    maybe: Section | None = None
    seed: int = 0
    names: list[str] = field(default_factory=list)


def test_a_dataclass_becomes_a_command_line():
    arguments = cli.parse(Arguments, ["--settings", '{"steps": 2}', "--rows", "a", "b", "--seed", "7"])
    assert arguments == Arguments(Section(steps=2), [Path("a"), Path("b")], seed=7)
    assert cli.parse(Arguments, ["--settings", '{"steps": 2}', "--rows", "--maybe", '{"steps": 1}']).maybe.steps == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('{"steps": "x"}', "--settings: steps: "),
        ('{"stepz": 1}', r"--settings: stepz: there is no such key; did you mean `steps`\?"),
        ('{"steps": 1, "stepz": 1}', r"--settings: stepz: there is no such key; did you mean `steps`\?"),
    ],
)
def test_a_bad_option_is_named(settings, message):
    with pytest.raises(UserError, match=message):
        cli.parse(Arguments, ["--settings", settings, "--rows", "a"])


def test_a_user_error_is_one_line_and_exit_code_1(capsys):
    def main():
        raise UserError("probes.truth.model: no such model")

    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    assert stop.value.code == 1
    assert capsys.readouterr().err == "error: probes.truth.model: no such model\n"


def test_a_stage_depends_on_the_modules_it_imports():
    found = {Path(path).name for path in code_inputs.imports("train_ppo")}
    assert {"ppo.py", "files.py", "errors.py"} <= found
    assert "evaluation.py" not in found and "fetch.py" not in found
