"""Evaluating a model on suites of tasks with lm-evaluation-harness: results, and samples as a table."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lm_eval.evaluator import evaluate as run_harness
from transformers import PreTrainedModel

from elkflow.common.errors import UserError, first_line
from elkflow.common.files import sha256
from elkflow.config.evaluation import EvaluationSettings, SuiteSettings, TaskSettings
from elkflow.config.model import ModelSettings
from elkflow.evaluation.harness_model import HarnessModel
from elkflow.evaluation.harness_tasks import load_task, load_wording
from elkflow.evaluation.score_cache import ScoreCache
from elkflow.models.load import load_model
from elkflow.models.tokens import load_tokenizer

logger = logging.getLogger(__name__)


def load_harness_model(
    folder: Path,
    settings: ModelSettings,
    evaluation: EvaluationSettings,
    *,
    adapter: Path | None = None,
    cache: Path | None = None,
) -> HarnessModel:
    """The model to evaluate: a checkpoint, with the adapter on top if one is given.

    Args:
        cache: folder of the score cache; None: scores are not cached.
    """
    loading = settings.loading()
    if evaluation.dtype:
        loading["dtype"] = evaluation.dtype
    if evaluation.quantization:
        loading["quantization"] = None if evaluation.quantization == "none" else evaluation.quantization
    model: Any = load_model(folder, **loading)
    if adapter is not None:
        model = with_adapter(model, adapter)
    tokenizer = load_tokenizer(folder, trust_remote_code=settings.trust_remote_code)
    seq2seq = bool(model.config.is_encoder_decoder)
    scores = None
    if cache is not None:
        weights = {"model": sha256(folder), "adapter": sha256(adapter) if adapter else None}
        scores = ScoreCache(cache, {**weights, **loading, "compute": str(model.dtype), "device": model.device.type})
    made = HarnessModel(model, tokenizer, batch_size=evaluation.batch_size, seq2seq=seq2seq, cache=scores)
    made.chat_template_args = dict(settings.chat_arguments)
    return made


def with_adapter(model: PreTrainedModel, adapter: Path) -> torch.nn.Module:
    """The model with a LoRA adapter on top, not merged, as an 8-bit base needs."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(adapter)).eval()


def evaluate_suite(
    model: HarnessModel, suite: SuiteSettings, prompts: Mapping[str, Path], questions: Path | None = None
) -> tuple[dict[str, dict[str, Any]], pd.DataFrame] | None:
    """Evaluate the model on every task of a suite.

    Args:
        prompts: wording to prompts file (columns id, prompt, answers, label).
        questions: folder of the harness tasks' questions, as made by `fetch_questions`.

    Returns:
        Results, task to {metric, n, value, stderr, higher_is_better}, and samples (see `sample_table`). None on every
        process but the first.
    """
    results, tables = {}, []
    default = model.batch_size_per_gpu
    tasks: list[tuple[str, TaskSettings | None]] = [(wording, None) for wording in suite.wordings]
    tasks += [(task.task, task) for task in suite.tasks]
    for name, task in tasks:
        loaded = load_task(task, questions) if task else load_wording(name, prompts[name])
        model.exact_prompts = task is None
        model.batch_size_per_gpu = (task and task.batch_size) or default
        metric = task.metric if task else "acc"
        try:
            raw = run_harness(
                model,
                loaded,
                limit=task.limit if task else suite.limit,
                bootstrap_iters=0,  # standard errors are computed from the samples
                apply_chat_template=bool(task and task.chat),
                fewshot_as_multiturn=bool(task and task.chat),
            )
        except TypeError as error:  # such as its `likelihood`, a mean of pairs
            raise UserError(
                f"lm-evaluation-harness fails on {metric!r} of task {name!r}: {first_line(error)}"
            ) from error
        if raw is None:
            continue
        table = sample_table(name, metric, raw["samples"])
        check_against_harness(table, metric, raw["results"])
        higher = all(leaf.higher_is_better()[metric] for leaf in loaded["tasks"].values())
        results[name] = task_result(table, metric, higher)
        logger.info("%s: %s %.4f ± %.4f on %d", name, metric, *(results[name][k] for k in ("value", "stderr", "n")))
        tables.append(table)
    return (results, pd.concat(tables, ignore_index=True)) if model.rank == 0 else None


def sample_table(task: str, metric: str, samples: Mapping[str, list[Mapping[str, Any]]]) -> pd.DataFrame:
    """One row per question of a task or, for a group such as mmlu, of its parts.

    Columns:
        task, part: the name in the config, and the harness task, which differs where `task` is a group.
        doc_id, id: the position in the dataset, and the dataset's own id or else the position, as text.
        label, prediction: index of the right and of the chosen answer; missing where there is no choice.
        correct: whether they agree; missing where there is no choice.
        value, weight: the metric on this question and its weight in the mean (bytes for bits per byte, else 1).
        scores: log-probability of each answer, or of the text.

    Raises:
        UserError: the task's answers do not give `metric`.
    """
    rows = []
    for part, entries in samples.items():
        for entry in sorted(entries, key=lambda entry: entry["doc_id"]):
            if metric not in entry:
                known = ", ".join(entry["metrics"])
                raise UserError(f"evaluation.suites: task {task!r} does not report {metric!r} (it reports {known})")
            value, weight = _value(metric, entry[metric])
            scores = [float(r[0] if isinstance(r, tuple | list) else r) for r in entry["filtered_resps"]]
            label, prediction = label_and_prediction(metric, entry, scores)
            rows.append(
                {
                    "task": task,
                    "part": part,
                    "doc_id": int(entry["doc_id"]),
                    "id": str(entry["doc"].get("id", entry["doc_id"])),
                    "label": label,
                    "prediction": prediction,
                    "correct": None if prediction is None else bool(value),
                    "value": value,
                    "weight": weight,
                    "scores": scores,
                }
            )
    table = pd.DataFrame(rows)
    return table.astype({"label": "Int64", "prediction": "Int64", "correct": "boolean"})


def _value(metric: str, reported: Any) -> tuple[float, float]:
    """A question's metric as (value, weight), whose weighted mean is the harness's value."""
    if metric == "bits_per_byte":
        likelihood, length = reported
        return -likelihood / length / math.log(2), float(length)
    if metric == "brier_score":
        label, chances = reported
        return float(np.sum((np.asarray(chances) - np.eye(len(chances))[label]) ** 2)), 1.0
    return float(reported), 1.0


def check_against_harness(samples: pd.DataFrame, metric: str, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise a UserError where the harness's own value of a task is not the mean over its samples."""
    for part, rows in samples.groupby("part"):
        ours, _ = _weighted_mean(rows["value"].to_numpy(), rows["weight"].to_numpy())
        theirs = next(value for name, value in results[str(part)].items() if name.split(",")[0] == metric)
        if not math.isclose(ours, theirs, rel_tol=1e-6, abs_tol=1e-9):
            raise UserError(
                f"evaluation.suites: {metric!r} of task {part!r} is {theirs:g} by lm-evaluation-harness, the mean over"
                f" its questions {ours:g}: what is no mean cannot be compared question by question"
            )


def label_and_prediction(metric: str, entry: Mapping[str, Any], scores: list[float]) -> tuple[int | None, int | None]:
    """Index of the right and of the model's answer; None where the question is no choice with one right answer."""
    if metric not in ("acc", "acc_norm") or len(scores) < 2 or not isinstance(entry["target"], int | np.integer):
        return None, None
    lengths = [len(answer) for _, answer in entry["arguments"]] if metric == "acc_norm" else [1] * len(scores)
    return int(entry["target"]), int(np.argmax(np.divide(scores, lengths)))


def task_result(samples: pd.DataFrame, metric: str, higher_is_better: bool) -> dict[str, Any]:
    """Weighted mean of the samples' values with its standard error; for a group, the plain mean over its parts."""
    parts = [_weighted_mean(part["value"].to_numpy(), part["weight"].to_numpy()) for _, part in samples.groupby("part")]
    value = float(np.mean([mean for mean, _ in parts]))
    stderr = math.sqrt(sum(error**2 for _, error in parts)) / len(parts)
    return {
        "metric": metric,
        "n": len(samples),
        "value": value,
        "stderr": stderr,
        "higher_is_better": higher_is_better,
    }


def _weighted_mean(values: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Weighted mean and its standard error (linearised ratio estimator, s/√n for equal weights)."""
    mean = float(np.average(values, weights=weights))
    if len(values) < 2:
        return mean, 0.0
    share = weights / weights.sum()
    error = math.sqrt(len(values) / (len(values) - 1) * float(np.sum((share * (values - mean)) ** 2)))
    return mean, error


def suite_average(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float] | None:
    """Plain mean over a suite's tasks with its standard error, if all are accuracies; else None.

    Leaderboards rank by it (ARC, HellaSwag, MMLU, TruthfulQA).
    """
    if len(results) < 2 or any(result["metric"] not in ("acc", "acc_norm") for result in results.values()):
        return None
    errors = [result["stderr"] for result in results.values()]
    value = float(np.mean([result["value"] for result in results.values()]))
    return {"value": value, "stderr": math.sqrt(sum(error**2 for error in errors)) / len(errors)}
