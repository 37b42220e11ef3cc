"""Questions of the harness's tasks, fetched from a hub of stand-ins."""

import fetch_questions as script
import pytest

from elkflow.common.errors import UserError
from elkflow.common.manifests import check_manifest
from elkflow.evaluation import fetch_questions as questions_module

pytestmark = pytest.mark.usefixtures("few_task_files")


def test_every_split_that_is_asked_or_shown_is_fetched_and_no_other(questions):
    manifest = check_manifest(questions.with_suffix(".json"))
    assert set(manifest["facts"]["revisions"]) == {
        *("allenai/ai2_arc", "Rowan/hellaswag", "truthfulqa/truthful_qa", "cais/mmlu"),
    }
    found = {str(file.relative_to(questions)) for file in questions.rglob("*.parquet")}
    assert {name for name in found if name.startswith("allenai")} == {
        f"allenai__ai2_arc/ARC-Challenge/{split}.parquet" for split in ("train", "validation", "test")
    }
    assert "truthfulqa__truthful_qa/multiple_choice/validation.parquet" in found
    subjects = [name for name in found if name.startswith("cais__mmlu")]
    assert len(subjects) == 57 * 2 and not any("auxiliary_train" in name for name in subjects)


def test_a_hub_that_cannot_be_reached_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(questions_module.HfApi, "dataset_info", unreachable)
    arguments = ["--tasks", "elkflow_qnli", "--revisions", "{}", "--folder", str(tmp_path / "q")]
    with pytest.raises(UserError, match=r"'nyu-mll/glue' cannot be downloaded .no route to host"):
        script.main([*arguments, "--manifest", str(tmp_path / "q.json")])
    assert not list(tmp_path.iterdir())
