"""The source files that a stage depends on."""

from pathlib import Path

from elkflow.common import code_inputs


def test_a_stage_depends_on_the_modules_it_imports():
    found = {Path(path).name for path in code_inputs.imports("train_ppo")}
    assert {"objective.py", "files.py", "errors.py"} <= found
    assert "evaluate_model.py" not in found and "fetch_model.py" not in found
