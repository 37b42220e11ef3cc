"""A tiny checkpoint for the evaluation's tests, and the leaderboard's questions from a hub of stand-ins."""

from pathlib import Path

import datasets
import fetch_questions as script
import lm_eval.tasks
import pytest
import torch
import yaml
from lm_eval.tasks import TaskManager
from tiny import save_tiny_model
from tiny_evaluation import SENTENCES
from workspace import ROOT

from elkflow.config.evaluation import EvaluationSettings, SuiteSettings
from elkflow.evaluation import fetch_questions as questions_module
from elkflow.evaluation import harness_tasks

HARNESS = Path(lm_eval.tasks.__file__).parent


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("checkpoint"), texts=SENTENCES)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads of tiny matrix products only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def few_task_files():
    """The harness's folders of these tasks only: reading all of them takes ten seconds."""
    folders = [harness_tasks.TASKS, *(HARNESS / name for name in ("arc", "hellaswag", "truthfulqa", "mmlu/default"))]
    few = TaskManager(include_path=[str(folder) for folder in folders], include_defaults=False)
    patch = pytest.MonkeyPatch()
    patch.setattr(harness_tasks, "all_tasks", lambda: few)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def leaderboard():
    config = yaml.safe_load((ROOT / "config" / "thesis.yaml").read_text())
    return EvaluationSettings.model_validate(config["evaluation"]).suites["leaderboard"]


def rows(dataset, split, count, word):
    """Rows with the columns of a hub dataset."""
    many = range(count)
    options = [f"{word} one", f"{word} two", f"{word} three", f"{word} four"]
    if dataset == "allenai/ai2_arc":
        choices = {"text": options, "label": ["A", "B", "C", "D"]}
        return [
            {"id": f"{split}{n}", "question": f"what {n} ?", "choices": choices, "answerKey": "ABCD"[n % 4]}
            for n in many
        ]
    if dataset == "Rowan/hellaswag":
        shared = {"activity_label": "Capital", "ctx_a": "paris is", "ctx_b": "the", "endings": options}
        return [{"ind": n, "ctx": "paris is the", "label": str(n % 4), **shared} for n in many]
    if dataset == "truthfulqa/truthful_qa":
        first = {"choices": options, "labels": [1, 0, 0, 0]}
        second = {"choices": options, "labels": [1, 1, 0, 0]}
        return [{"question": f"what {n} ?", "mc1_targets": first, "mc2_targets": second} for n in many]
    assert dataset == "cais/mmlu"
    return [{"question": f"{split} {n} ?", "subject": word, "choices": options, "answer": n % 4} for n in many]


def stand_in(dataset, configuration, *, split, revision):
    assert revision == f"commit of {dataset}"
    counts = {"train": 30, "dev": 5}
    return datasets.Dataset.from_list(rows(dataset, split, counts.get(split, 4), configuration or "italy"))


@pytest.fixture(scope="module")
def questions(few_task_files, leaderboard, tmp_path_factory):
    """Fetched by the workflow's own script from a hub of stand-ins."""
    folder = tmp_path_factory.mktemp("questions")
    patch = pytest.MonkeyPatch()
    patch.setattr(questions_module.datasets, "load_dataset", stand_in)
    patch.setattr(
        questions_module.HfApi, "dataset_info", lambda self, name: type("Info", (), {"sha": f"commit of {name}"})
    )
    names = SuiteSettings(tasks=leaderboard.tasks).fetched()
    arguments = ["--tasks", *names, "--revisions", "{}", "--folder", str(folder / "q")]
    script.main([*arguments, "--manifest", str(folder / "q.json")])
    patch.undo()
    return folder / "q"
