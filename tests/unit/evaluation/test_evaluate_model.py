"""Suites of tasks through the harness: scores, tables, manifests, precisions and processes, and the script."""

import math

import evaluate_model as script
import numpy as np
import pandas as pd
import pytest
import tiny_evaluation
import torch
from launching import launched
from peft import LoraConfig, get_peft_model
from pydantic import ValidationError
from tiny import save_tiny_model
from tiny_evaluation import MIXED, SENTENCES, by_hand, questions, tiny_harness_model, tokens, written

from elkflow.common.errors import UserError
from elkflow.common.files import read_json, read_table
from elkflow.common.manifests import check_manifest, write_manifest
from elkflow.config.evaluation import EvaluationSettings, SuiteSettings, TaskSettings
from elkflow.config.model import ModelSettings
from elkflow.evaluation import evaluate_model, harness_model
from elkflow.models.load import load_model
from elkflow.models.tokens import load_tokenizer

CONTROL = [TaskSettings(task="elkflow_cloze"), TaskSettings(task="elkflow_prose", metric="bits_per_byte")]


def test_scores_are_the_log_probabilities_of_training_tokens(checkpoint, tmp_path):
    table = questions()
    suite = SuiteSettings(wordings=["plain"])
    results, samples = evaluate_model.evaluate_suite(
        tiny_harness_model(checkpoint), suite, {"plain": written(table, tmp_path / "plain")}
    )
    assert samples["id"].tolist() == table["id"].tolist()
    assert samples["label"].tolist() == table["label"].tolist()
    for row in (0, 7, 23):
        expected = [by_hand(checkpoint, table["prompt"][row], answer) for answer in ("No", "Yes")]
        assert samples["scores"][row] == pytest.approx(expected, abs=1e-4)
    assert samples["prediction"].tolist() == [int(np.argmax(scores)) for scores in samples["scores"]]
    assert (samples["correct"] == (samples["prediction"] == samples["label"])).all()
    assert results["plain"]["value"] == pytest.approx(float(samples["correct"].mean()))
    assert results["plain"]["n"] == 24 and results["plain"]["metric"] == "acc"


def test_control_tasks_need_no_network_and_have_one_right_answer_each(checkpoint):
    results, samples = evaluate_model.evaluate_suite(tiny_harness_model(checkpoint), SuiteSettings(tasks=CONTROL), {})
    assert results["elkflow_cloze"]["n"] >= 200 and results["elkflow_prose"]["n"] == 10
    cloze = samples[samples["task"] == "elkflow_cloze"]
    assert cloze["scores"].map(len).eq(4).all()
    assert cloze["label"].value_counts().max() - cloze["label"].value_counts().min() <= 1
    prose = samples[samples["task"] == "elkflow_prose"]
    likelihood = sum(scores[0] for scores in prose["scores"])
    bits = -likelihood / prose["weight"].sum() / math.log(2)
    assert results["elkflow_prose"]["value"] == pytest.approx(bits)
    assert not results["elkflow_prose"]["higher_is_better"]
    assert prose["correct"].isna().all() and prose["label"].isna().all()


def test_standard_errors():
    ones = pd.DataFrame({"part": "a", "value": [0.0, 1.0, 1.0, 1.0], "weight": 1.0})
    summary = evaluate_model.task_result(ones, "acc", True)
    assert summary["value"] == 0.75
    assert summary["stderr"] == pytest.approx(np.std([0, 1, 1, 1], ddof=1) / 2)
    two = pd.concat([ones, pd.DataFrame({"part": "b", "value": [0.0, 0.0], "weight": 1.0})])
    assert (
        evaluate_model.task_result(two, "acc", True)["value"] == 0.375
    )  # plain mean over parts, as the leaderboard does


def test_a_metric_the_task_does_not_have_is_named(checkpoint):
    suite = SuiteSettings(tasks=[TaskSettings(task="elkflow_cloze", metric="f2", limit=2)])
    with pytest.raises(UserError, match=r"'elkflow_cloze' has no metric 'f2' \(it has acc\)"):
        evaluate_model.evaluate_suite(tiny_harness_model(checkpoint), suite, {})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"suites": {}}, "suites"),
        ({"suites": {"empty": {}}}, "needs `wordings` or `tasks`"),
        ({"suites": {"a": {"wordings": ["x"], "tasks": [{"task": "x"}]}}}, "both a wording and a task"),
        ({"suites": {"a": {"tasks": [{"task": "x"}, {"task": "x"}]}}}, "listed twice"),
        ({"suites": {"a": {"wordings": ["x"]}}, "batch_size": 0}, "batch_size"),
        ({"suites": {"a": {"wording": ["x"]}}}, "wording"),
        ({"suites": {"a": {"tasks": [{"task": "x", "num_fewshot": -1}]}}}, "num_fewshot"),
    ],
)
def test_settings_that_make_no_sense(section, message):
    with pytest.raises(ValidationError, match=message):
        EvaluationSettings.model_validate(section)


def command(checkpoint, folder, settings, extra=()):
    files = [written(questions(), folder / wording) for wording in settings.wordings()]
    lineage = checkpoint.with_name(f"{checkpoint.name}.json")
    write_manifest(lineage, outputs={"checkpoint": checkpoint}, inputs={})
    return [
        *("--settings", settings.questions()),
        *("--model-settings", ModelSettings(path="anywhere", dtype="float32").model_dump_json()),
        *("--model", str(checkpoint), "--lineage", str(lineage)),
        *("--answers", str(folder / "answers")),
        *("--prompts", *map(str, files)),
        *("--results", *(str(folder / "out" / suite / "results.json") for suite in settings.suites)),
        *extra,
    ]


def test_the_script_writes_every_suite_with_manifests(checkpoint, tmp_path):
    settings = EvaluationSettings(
        suites={
            "target": SuiteSettings(wordings=["first", "second"], limit=10),
            "control": SuiteSettings(tasks=CONTROL),
        }
    )
    script.main(command(checkpoint, tmp_path, settings))
    results = read_json(tmp_path / "out" / "target" / "results.json")
    assert list(results) == ["first", "second"] and results["first"]["n"] == 10
    samples = read_table(tmp_path / "out" / "target" / "samples.parquet").to_pandas()
    assert samples.groupby("task").size().to_dict() == {"first": 10, "second": 10}
    assert set(read_json(tmp_path / "out" / "control" / "results.json")) == {"elkflow_cloze", "elkflow_prose"}
    for suite in ("target", "control"):
        check_manifest(tmp_path / "out" / suite / "manifest.json")
    assert set(check_manifest(tmp_path / "out" / "target" / "manifest.json")["inputs"]) == {
        "model",
        "prompts first",
        "prompts second",
    }
    before = (tmp_path / "out" / "target" / "samples.parquet").read_bytes()
    script.main(command(checkpoint, tmp_path, settings))
    assert (tmp_path / "out" / "target" / "samples.parquet").read_bytes() == before


def test_a_changed_model_or_question_is_never_served_old_answers(tmp_path, monkeypatch):
    checkpoint = save_tiny_model(tmp_path / "checkpoint", texts=SENTENCES)
    settings = EvaluationSettings(suites={"target": SuiteSettings(wordings=["plain"])})
    runs = []
    forward = harness_model.HarnessModel._score_all
    monkeypatch.setattr(harness_model.HarnessModel, "_score_all", lambda *given: runs.append(1) or forward(*given))

    def scores(extra=()):
        before = len(runs)
        script.main(command(checkpoint, tmp_path, settings, extra))
        table = read_table(tmp_path / "out" / "target" / "samples.parquet").to_pandas()
        return np.stack(table["scores"]), len(runs) - before

    first, ran = scores()
    assert ran == 1
    again, ran = scores()
    assert ran == 0 and np.array_equal(first, again)  # nothing changed: found again, not computed
    save_tiny_model(checkpoint, texts=SENTENCES, seed=1)  # the same folder with other weights
    other, ran = scores()
    assert ran == 1 and not np.allclose(first, other)
    save_tiny_model(checkpoint, texts=SENTENCES)
    back, ran = scores()
    assert ran == 0 and np.array_equal(first, back)
    monkeypatch.setattr(tiny_evaluation, "OPENING", "<|user|> what is the question ?")  # other questions
    reworded, ran = scores()
    assert ran == 1 and not np.allclose(first, reworded)


def test_a_damaged_model_is_named_before_it_is_loaded(tmp_path):
    checkpoint = save_tiny_model(tmp_path / "checkpoint", texts=SENTENCES)
    settings = EvaluationSettings(suites={"target": SuiteSettings(wordings=["plain"])})
    arguments = command(checkpoint, tmp_path, settings)
    with (checkpoint / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"bits")
    with pytest.raises(UserError, match="checkpoint: damaged or changed"):
        script.main(arguments)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def tuned(checkpoint, tmp_path_factory):
    """An adapter that says something else than the base model, and the two merged."""
    folder = tmp_path_factory.mktemp("tuned")
    torch.manual_seed(0)
    model = get_peft_model(
        load_model(checkpoint, dtype="float32"), LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=3.0)
    model.save_pretrained(folder / "adapter")
    model.merge_and_unload().save_pretrained(folder / "merged")
    load_tokenizer(checkpoint).save_pretrained(folder / "merged")
    return folder


@pytest.mark.parametrize(
    ("precision", "rounding"),
    [({"dtype": "float32"}, 1e-4), ({"dtype": "bfloat16"}, 0.1), ({"quantization": "8bit"}, 0.2)],
    ids=lambda value: str(value),
)
def test_base_adapter_and_merged_model_in_every_precision(checkpoint, tuned, precision, rounding):
    settings = EvaluationSettings(suites={"a": SuiteSettings(wordings=["x"])}, **precision)
    found = []
    for folder, adapter in ((checkpoint, None), (checkpoint, tuned / "adapter"), (tuned / "merged", None)):
        model = evaluate_model.load_harness_model(
            folder, ModelSettings(path="x", dtype="float32"), settings, adapter=adapter
        )
        assert bool(getattr(model.model, "is_loaded_in_8bit", False)) is ("quantization" in precision)
        assert "dtype" not in precision or str(model.model.dtype) == f"torch.{precision['dtype']}"
        exact = {answer: by_hand(tuned / "merged" if found else checkpoint, *answer) for answer in MIXED[:6]}
        scored = model._loglikelihood_tokens([((c, a), *tokens(model, c, a)) for c, a in exact])
        assert model._readers[True][0].windowed
        found.append([score for score, _ in scored])
        assert found[-1] == pytest.approx(list(exact.values()), abs=rounding)
    base, adapter, merged = found
    assert adapter == pytest.approx(merged, abs=rounding) and base != pytest.approx(merged, abs=2 * rounding)


def test_two_processes_give_the_same_results_and_samples(checkpoint, tmp_path):
    """Shares of unequal size, choices and whole texts, and a suite of each."""
    suites = {"target": SuiteSettings(wordings=["first", "second"], limit=23), "control": SuiteSettings(tasks=CONTROL)}
    settings = EvaluationSettings(suites=suites)
    for processes in (1, 2):
        launched(processes, script.__file__, *command(checkpoint, tmp_path / f"of{processes}", settings))
    one, two = tmp_path / "of1", tmp_path / "of2"
    kept = [len(list((folder / "answers").rglob("*.json"))) for folder in (one, two)]
    assert kept[1] == 2 * kept[0] > 0  # each process kept the scores of its own share
    for suite in suites:
        tables = [read_table(folder / f"out/{suite}/samples.parquet").to_pandas() for folder in (one, two)]
        columns = ["task", "part", "doc_id", "id", "label", "prediction", "correct", "weight"]
        pd.testing.assert_frame_equal(*(table[columns] for table in tables))
        for scores in zip(*(table["scores"] for table in tables), strict=True):
            assert scores[0] == pytest.approx(scores[1], abs=1e-4)
        first, second = (read_json(folder / f"out/{suite}/results.json") for folder in (one, two))
        assert list(first) == list(second)
        for task in first:
            assert second[task] == pytest.approx(first[task], abs=1e-6), task
        check_manifest(two / f"out/{suite}/manifest.json")
