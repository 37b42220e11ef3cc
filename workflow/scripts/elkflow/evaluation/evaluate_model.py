"""Suites of questions put to a model by lm-evaluation-harness, and its answers as two plain tables."""

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

from elkflow.common.errors import UserError
from elkflow.common.files import sha256
from elkflow.config.evaluation import EvaluationSettings, SuiteSettings, TaskSettings
from elkflow.config.model import ModelSettings
from elkflow.evaluation.harness_model import HarnessModel
from elkflow.evaluation.harness_tasks import load_task, load_wording
from elkflow.evaluation.score_cache import Answers
from elkflow.models.load import load_model
from elkflow.models.tokens import load_tokenizer

LOWER_IS_BETTER = {"bits_per_byte", "byte_perplexity", "word_perplexity", "perplexity", "brier_score"}
logger = logging.getLogger(__name__)


def load_subject(
    folder: Path,
    settings: ModelSettings,
    evaluation: EvaluationSettings,
    *,
    adapter: Path | None = None,
    answers: Path | None = None,
) -> HarnessModel:
    """The model to be questioned: a checkpoint, with an adapter on top where one is given.

    Args:
        answers: folder where scores are kept and looked up by the content of the weights; none: nothing is kept.
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
    store = None
    if answers is not None:
        weights = {"model": sha256(folder), "adapter": sha256(adapter) if adapter else None}
        store = Answers(answers, {**weights, **loading, "compute": str(model.dtype), "device": model.device.type})
    return HarnessModel(model, tokenizer, batch_size=evaluation.batch_size, seq2seq=seq2seq, answers=store)


def with_adapter(model: PreTrainedModel, adapter: Path) -> torch.nn.Module:
    """The model with a LoRA adapter on top, not merged (what an 8-bit base needs)."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(adapter)).eval()


def evaluate_suite(
    model: HarnessModel, suite: SuiteSettings, prompts: Mapping[str, Path], questions: Path | None = None
) -> tuple[dict[str, dict[str, Any]], pd.DataFrame] | None:
    """Put every task of a suite to the model.

    Args:
        prompts: wording to prompts file (columns id, prompt, answers, label).
        questions: folder of the harness tasks' questions, as `elkflow.evaluation.fetch_questions.fetch` leaves it.

    Returns:
        Results, task to {metric, n, value, stderr, higher_is_better}, and samples (see `sample_table`), in this order.
        None on every process but the first.
    """
    results, tables = {}, []
    default = model.batch_size_per_gpu
    tasks: list[tuple[str, TaskSettings | None]] = [(wording, None) for wording in suite.wordings]
    tasks += [(task.task, task) for task in suite.tasks]
    for name, task in tasks:
        loaded = load_task(task, questions) if task else load_wording(name, prompts[name])
        model.exact_prompts = task is None
        model.batch_size_per_gpu = (task and task.batch_size) or default
        raw = run_harness(
            model,
            loaded,
            limit=task.limit if task else suite.limit,
            bootstrap_iters=0,  # standard errors come from the samples, below
            apply_chat_template=bool(task and task.chat),
            fewshot_as_multiturn=bool(task and task.chat),
        )
        if raw is None:
            continue
        metric = task.metric if task else "acc"
        table = sample_table(name, metric, raw["samples"])
        results[name] = summarise(table, metric)
        logger.info("%s: %s %.4f ± %.4f on %d", name, metric, *(results[name][k] for k in ("value", "stderr", "n")))
        tables.append(table)
    return (results, pd.concat(tables, ignore_index=True)) if model.rank == 0 else None


def sample_table(task: str, metric: str, samples: Mapping[str, list[Mapping[str, Any]]]) -> pd.DataFrame:
    """One row a question of a task or, for a group such as mmlu, of its parts.

    Columns:
        task, part: the name in the config; the harness task it belongs to (the same unless `task` is a group).
        doc_id, id: position in its dataset; the dataset's own id, else the position, as text.
        label, prediction: index of the right and of the chosen answer; missing where there is no choice.
        correct: whether they agree; missing where there is no choice.
        value, weight: the metric on this question, and its weight in the mean (bytes, for bits per byte; else 1).
        scores: log-probability of each answer, or of the text.

    Raises:
        UserError: the task does not report `metric`.
    """
    rows = []
    for part, entries in samples.items():
        for entry in sorted(entries, key=lambda entry: entry["doc_id"]):
            if metric not in entry:
                known = ", ".join(entry["metrics"])
                raise UserError(f"evaluation.suites: task {task!r} has no metric {metric!r} (it has {known})")
            value, weight = _value(metric, entry[metric])
            scores = [float(r[0] if isinstance(r, tuple | list) else r) for r in entry["filtered_resps"]]
            label, prediction = _choice(metric, entry, scores)
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
    """What the harness reports for one question as (value, weight): perplexities come as (log-likelihood, length)."""
    if isinstance(reported, tuple | list):
        likelihood, length = reported
        return -likelihood / length / (math.log(2) if metric == "bits_per_byte" else 1.0), float(length)
    return float(reported), 1.0


def _choice(metric: str, entry: Mapping[str, Any], scores: list[float]) -> tuple[int | None, int | None]:
    """Index of the right answer and of the model's, where the question is a choice with one right answer."""
    if metric not in ("acc", "acc_norm") or len(scores) < 2 or not isinstance(entry["target"], int | np.integer):
        return None, None
    lengths = [len(answer) for _, answer in entry["arguments"]] if metric == "acc_norm" else [1] * len(scores)
    return int(entry["target"]), int(np.argmax(np.divide(scores, lengths)))


def summarise(samples: pd.DataFrame, metric: str) -> dict[str, Any]:
    """Weighted mean of the samples' values with its standard error; a group's value is the plain mean of its parts."""
    parts = [_mean(part["value"].to_numpy(), part["weight"].to_numpy()) for _, part in samples.groupby("part")]
    value = float(np.mean([mean for mean, _ in parts]))
    stderr = math.sqrt(sum(error**2 for _, error in parts)) / len(parts)
    return {
        "metric": metric,
        "n": len(samples),
        "value": value,
        "stderr": stderr,
        "higher_is_better": metric not in LOWER_IS_BETTER,
    }


def _mean(values: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Weighted mean and its standard error (linearised ratio estimate; with equal weights the usual s/√n)."""
    mean = float(np.average(values, weights=weights))
    if len(values) < 2:
        return mean, 0.0
    share = weights / weights.sum()
    error = math.sqrt(len(values) / (len(values) - 1) * float(np.sum((share * (values - mean)) ** 2)))
    return mean, error


def average(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float] | None:
    """Plain mean over a suite's tasks, with its standard error, where all count correct answers; else None.

    Leaderboards rank by it (ARC, HellaSwag, MMLU, TruthfulQA).
    """
    if len(results) < 2 or any(result["metric"] not in ("acc", "acc_norm") for result in results.values()):
        return None
    errors = [result["stderr"] for result in results.values()]
    value = float(np.mean([result["value"] for result in results.values()]))
    return {"value": value, "stderr": math.sqrt(sum(error**2 for error in errors)) / len(errors)}
