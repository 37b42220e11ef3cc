"""The leaderboard suite of config/thesis.yaml on local files of each dataset's schema; tasks of the hub."""

import json
import subprocess
import sys
from pathlib import Path

import lm_eval.tasks
import numpy as np
import pandas as pd
import pytest
from tiny import save_tiny_model

from elkflow.common.errors import UserError
from elkflow.config.evaluation import EvaluationSettings, SuiteSettings, TaskSettings
from elkflow.evaluation import evaluate_model, harness_model, harness_tasks
from elkflow.models.load import load_model
from elkflow.models.tokens import load_tokenizer

ROOT = Path(__file__).parents[3]
HARNESS = Path(lm_eval.tasks.__file__).parent
pytestmark = pytest.mark.usefixtures("few_task_files")
WORDS = ["paris", "rome", "france", "italy", "capital", "sentence"]


def test_the_suite_has_the_leaderboards_shots_and_metrics(leaderboard):
    assert [(task.task, task.num_fewshot, task.metric) for task in leaderboard.tasks] == [
        ("arc_challenge", 25, "acc_norm"),
        ("hellaswag", 10, "acc_norm"),
        ("mmlu", 5, "acc"),
        ("truthfulqa_mc2", 0, "acc"),
    ]


def test_the_suite_runs_without_a_network(leaderboard, questions, tmp_path, monkeypatch):
    checkpoint = save_tiny_model(tmp_path, texts=WORDS)
    model = harness_model.HarnessModel(load_model(checkpoint, dtype="float32"), load_tokenizer(checkpoint))
    asked = []

    def chance(requests, **_):  # what is asked matters here, not what a random model says
        asked.extend(text for text, _, _ in requests)
        return [(-float(len(answer)), False) for _, _, answer in requests]

    monkeypatch.setattr(model, "_loglikelihood_tokens", chance)
    results, samples = evaluate_model.evaluate_suite(model, leaderboard, {}, questions)
    assert {name: result["n"] for name, result in results.items()} == {
        **{"arc_challenge": 4, "hellaswag": 4, "mmlu": 57 * 4, "truthfulqa_mc2": 4},
    }
    contexts = {context for context, _ in asked}
    arc = [context for context in contexts if context.startswith("Question: what")]
    assert {context.count("\nAnswer: ARC-Challenge") for context in arc} == {25}
    hella = [context for context in contexts if context.startswith("Capital")]
    assert {context.count("Capital: paris is The") for context in hella} == {11}
    anatomy = [context for context in contexts if "about anatomy" in context]
    assert len(anatomy) == 4
    for context in anatomy:  # the five examples of dev, in their order, then the question
        assert [part.split(" ?")[0] for part in context.split("\n") if " ?" in part][:5] == [
            f"dev {n}" for n in range(5)
        ]
        assert context.endswith("Answer:") and context.count("Answer:") == 6
    truthful = [context for context in contexts if "square root of banana" in context]
    assert len(truthful) == 4
    table = samples.set_index("task")
    parts = table.loc["mmlu"].groupby("part")["value"].mean()
    assert len(parts) == 57 and results["mmlu"]["value"] == pytest.approx(parts.mean())
    assert table.loc["truthfulqa_mc2", "value"].tolist() == pytest.approx([0.5] * 4)
    arc_rows = table.loc["arc_challenge"]
    assert (arc_rows["correct"] == (arc_rows["prediction"] == arc_rows["label"])).all()
    assert arc_rows["label"].tolist() == [0, 1, 2, 3]
    mean = evaluate_model.suite_average(results)
    assert mean["value"] == pytest.approx(np.mean([result["value"] for result in results.values()]))


def test_the_average_is_for_shares_of_right_answers_only():
    right = {"metric": "acc", "value": 0.5, "stderr": 0.03}
    assert evaluate_model.suite_average({"a": right, "b": right | {"value": 0.7, "stderr": 0.04}}) == {
        "value": pytest.approx(0.6),
        "stderr": pytest.approx(0.025),
    }
    assert evaluate_model.suite_average({"a": right}) is None
    assert evaluate_model.suite_average({"a": right, "b": right | {"metric": "bits_per_byte"}}) is None


def test_normalised_accuracy_predicts_what_the_harness_counts():
    """acc_norm divides by the answer's length in characters: the choice in the samples has to be the counted one."""
    entry = {"target": 1, "arguments": [("c", " a very long answer"), ("c", " no")]}
    assert evaluate_model.label_and_prediction("acc_norm", entry, [-4.0, -3.0]) == (1, 0)
    assert evaluate_model.label_and_prediction("acc", entry, [-4.0, -3.0]) == (1, 1)


def test_the_thesis_wordings_of_qnli(tmp_path):
    for split in ("train", "validation"):
        file = harness_tasks.dataset_folder(tmp_path, "nyu-mll/glue", "qnli") / f"{split}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        table = pd.DataFrame({"question": ["where ?"], "sentence": ["in rome"], "label": [0], "idx": [0]})
        table.to_parquet(file)
    texts, choices = {}, {}
    for name in ("elkflow_qnli", "elkflow_qnli_chat", "elkflow_qnli_vicuna"):
        task = harness_tasks.load_task(TaskSettings(task=name), tmp_path)["tasks"][name]
        document = task.task_docs[0]
        texts[name], choices[name] = task.doc_to_text(document), task.doc_to_choice(document)
        assert choices[name][task.doc_to_target(document)].lower() == "yes"  # label 0 is entailment
    assert texts["elkflow_qnli"] == "where ?\nin rome\nQuestion: Does this response answer the question?\nAnswer:"
    assert texts["elkflow_qnli_chat"] == texts["elkflow_qnli"] and choices["elkflow_qnli"] == ["yes", "no"]
    assert "Sentence:\n```\nin rome\n```\nQuestion: where ??\nAnswer:" in texts["elkflow_qnli_vicuna"]
    assert "enough information to answer" in texts["elkflow_qnli_vicuna"]


def test_questions_that_are_not_there_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no questions of nyu-mll/glue qnli"):
        harness_tasks.load_task(TaskSettings(task="elkflow_qnli"), tmp_path)
    with pytest.raises(UserError, match="has no task 'arc_chalenge'"):
        harness_tasks.load_task(TaskSettings(task="arc_chalenge"))


def test_the_harness_finds_the_tasks_valid():
    names = "elkflow_yes_no,elkflow_cloze,elkflow_prose,elkflow_qnli,elkflow_qnli_chat,elkflow_qnli_vicuna"
    command = [sys.executable, "-m", "lm_eval", "validate", "--include_path", str(harness_tasks.TASKS), "--tasks"]
    found = subprocess.run(
        [*command, names + ",arc_challenge,hellaswag,mmlu,truthfulqa_mc2"], capture_output=True, text=True
    )
    assert found.returncode == 0 and "All tasks found and valid" in found.stdout


def test_cloze_items_are_distinct_and_say_nothing_of_what_is_trained():
    documents = harness_tasks.own_tasks().load(["elkflow_cloze"])
    items = list(documents["tasks"]["elkflow_cloze"].task_docs)
    assert len({(item["stem"], tuple(item["choices"])) for item in items}) == len(items)
    for item in items:
        assert len(set(item["choices"])) == 4
        assert not {"Yes", "No", "yes", "no"} & set(item["choices"])


def test_task_files_are_where_the_workflow_looks_for_them():
    assert {file.name for file in Path(harness_tasks.TASKS).glob("*.yaml")} >= {
        "yes_no.yaml",
        "cloze.yaml",
        "prose.yaml",
    }
    assert json.loads(EvaluationSettings(suites={"a": SuiteSettings(wordings=["x"])}).questions()).keys() == {
        *("suites", "batch_size", "dtype", "quantization"),
    }
