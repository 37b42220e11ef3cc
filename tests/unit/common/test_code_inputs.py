"""Which modules' edits make a stage run again."""

from pathlib import Path

import pytest

from elkflow.common.code_inputs import closure, imports, script_path
from elkflow.common.paths import PACKAGE, SCRIPTS


def rooms(script: str) -> set[str]:
    """Rooms of the library that a script depends on."""
    return {Path(path).resolve().relative_to(PACKAGE).parts[0] for path in imports(script)}


def test_training_depends_on_no_prompts_data_or_hidden_states():
    """It reads what they made; a comment in a template's code must not retrain every policy."""
    found = rooms("train_ppo")
    assert {"ppo", "rewards", "models", "batching", "config", "common"} <= found
    assert not found & {"prompts", "data", "hiddens", "probes", "summary", "report"}
    assert not [path for path in imports("train_ppo") if "template" in Path(path).name]


@pytest.mark.parametrize(
    ("script", "needed", "foreign"),
    [
        ("split_dataset", {"data"}, {"prompts", "hiddens", "models", "probes", "ppo"}),
        ("render_prompts", {"prompts"}, {"hiddens", "probes", "ppo", "evaluation"}),
        ("extract_hiddens", {"hiddens"}, {"prompts", "data", "probes", "ppo", "evaluation"}),
        ("train_probe", {"probes"}, {"ppo", "evaluation", "rewards", "report"}),
        ("merge_lora", {"ppo"}, {"probes", "evaluation", "report"}),
        ("evaluate_model", {"evaluation"}, {"ppo", "probes", "report"}),
    ],
)
def test_a_stage_depends_on_its_own_room_and_on_no_later_one(script, needed, foreign):
    found = rooms(script)
    assert needed <= found and not found & foreign


def test_imports_are_followed_through_modules(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("from elkflow.common.cli import run\nimport os\n")
    found = {path.name for path in closure(script)}
    assert {"cli.py", "errors.py", "memory.py"} <= found, "cli imports errors and memory"
    assert closure(SCRIPTS / "split_dataset.py") == {Path(path).resolve() for path in imports("split_dataset")}


def test_paths_are_relative_to_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert script_path("verify").startswith("..") and Path(script_path("verify")).samefile(SCRIPTS / "verify.py")
