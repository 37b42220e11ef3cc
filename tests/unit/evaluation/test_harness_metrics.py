"""Every metric that the harness registers, on every kind of task: the harness's value, or a refusal."""

import json

import lm_eval.api.metrics  # registers them
import pytest
import yaml
from lm_eval.api.registry import METRIC_AGGREGATION_REGISTRY, METRIC_REGISTRY, is_higher_better
from lm_eval.evaluator import evaluate as run_harness
from tiny_evaluation import SENTENCES, tiny_harness_model

from elkflow.common.errors import UserError
from elkflow.config.evaluation import SuiteSettings, TaskSettings
from elkflow.evaluation import evaluate_model, harness_tasks

assert lm_eval.api.metrics
NAMES = sorted(METRIC_REGISTRY.keys())
KINDS = {
    "multiple_choice": {"doc_to_text": "{{q}}", "doc_to_choice": ["No", "Yes"], "doc_to_target": "label"},
    "loglikelihood": {"doc_to_text": "{{q}}", "doc_to_target": " {{a}}"},
    "loglikelihood_rolling": {"doc_to_text": "", "doc_to_target": "q"},
    "generate_until": {"doc_to_text": "{{q}}", "doc_to_target": "{{a}}"},
}
MEANS = {
    ("multiple_choice", "acc"),
    ("multiple_choice", "acc_norm"),
    ("multiple_choice", "acc_bytes"),
    ("multiple_choice", "acc_mutual_info"),
    ("multiple_choice", "brier_score"),
    ("multiple_choice", "exact_match"),
    ("loglikelihood", "acc"),
    ("loglikelihood_rolling", "bits_per_byte"),
}
"""What can be compared question by question."""
ROWS = [
    {"q": " ".join(SENTENCES[: 1 + n % 3]), "a": SENTENCES[n % 2].split()[0], "label": int(n % 3 == 0)}
    for n in range(9)
]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A task of every kind for every metric."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "rows.py").write_text(
        "import json, datasets\n"
        f"rows = lambda **_: {{'test': datasets.Dataset.from_list(json.loads({json.dumps(ROWS)!r}))}}\n"
    )
    for kind, keys in KINDS.items():
        for metric in NAMES:
            name = f"{kind}_{metric.replace('+', 'p')}"
            config = {"task": name, "test_split": "test", "output_type": kind, "num_fewshot": 0, **keys}
            config |= {"metric_list": [{"metric": metric}], "metadata": {"version": 1.0}}
            text = yaml.safe_dump(config) + "custom_dataset: !function rows.rows\n"
            (folder / f"{name}.yaml").write_text(text)
    patch = pytest.MonkeyPatch()
    patch.setattr(harness_tasks, "TASKS", folder)
    harness_tasks.own_tasks.cache_clear()
    yield
    patch.undo()
    harness_tasks.own_tasks.cache_clear()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", NAMES)
def test_a_value_is_the_harnesss_own_or_the_metric_is_refused(tasks, checkpoint, kind, metric):
    name = f"{kind}_{metric.replace('+', 'p')}"
    suite = SuiteSettings(tasks=[TaskSettings(task=name, metric=metric)])
    model = tiny_harness_model(checkpoint, batch_size=4)
    if (kind, metric) not in MEANS:
        with pytest.raises(
            UserError, match=f"task '{name}' generates text|is no mean|does not report|harness fails on"
        ):
            evaluate_model.evaluate_suite(model, suite, {})
        return
    results, samples = evaluate_model.evaluate_suite(model, suite, {})
    raw = run_harness(model, harness_tasks.load_task(suite.tasks[0]), bootstrap_iters=0)["results"][name]
    assert results[name]["value"] == pytest.approx(raw[f"{metric},none"], rel=1e-6)
    assert results[name]["higher_is_better"] == is_higher_better(metric)
    assert len(samples) == results[name]["n"] == len(ROWS)


def test_an_aggregation_of_ones_own_that_only_has_the_name_of_a_mean_is_found_out(tasks, checkpoint, monkeypatch):
    name = "multiple_choice_acc"

    def mean(entries):
        return sum(entries) / len(entries) + 0.25

    load = harness_tasks.load_task

    def loaded(settings, questions=None):
        found = load(settings, questions)
        found["tasks"][name]._aggregation_list["acc"] = mean
        return found

    monkeypatch.setattr(evaluate_model, "load_task", loaded)
    with pytest.raises(UserError, match="by lm-evaluation-harness, the mean over its questions"):
        suite = SuiteSettings(tasks=[TaskSettings(task=name)])
        evaluate_model.evaluate_suite(tiny_harness_model(checkpoint, batch_size=4), suite, {})


def test_the_refusal_names_what_can_be_used(tasks, checkpoint):
    with pytest.raises(UserError, match=r"'f1' of task 'multiple_choice_f1' is no mean .* it as f1_score"):
        harness_tasks.load_task(TaskSettings(task="multiple_choice_f1", metric="f1"))
    assert METRIC_AGGREGATION_REGISTRY["f1"].__name__ == "f1_score"
