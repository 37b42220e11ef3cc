"""Tasks of lm-evaluation-harness: finding them, and loading them with questions from local files."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from elkflow.common.errors import UserError
from elkflow.common.paths import TASKS
from elkflow.config.evaluation import TaskSettings

SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
FEWSHOT_SEED = 1234
"""The harness's default, so that scores compare with published ones."""
MEANS = ("mean", "bits_per_byte", "brier_score")
"""Aggregations of the harness that are means over questions, with or without weights."""
LoadedTasks = Mapping[str, Any]


@cache
def own_tasks() -> TaskManager:
    """The tasks in workflow/tasks."""
    return TaskManager(include_path=str(TASKS), include_defaults=False)


@cache
def all_tasks() -> TaskManager:
    """Our tasks and the harness's: used only where needed, as reading its thousands of files takes ten seconds."""
    return TaskManager(include_path=str(TASKS))


def task_manager(task: str) -> TaskManager:
    """The smaller of the managers that know a task.

    Raises:
        UserError: none does.
    """
    for manager in (own_tasks, all_tasks):
        if task in manager().all_tasks:
            return manager()
    raise UserError(f"evaluation.suites: lm-evaluation-harness has no task {task!r}")


def load_wording(name: str, prompts: Path) -> LoadedTasks:
    """The yes/no task on a file of rendered prompts, named after their wording."""
    config = load_yaml(TASKS / "yes_no.yaml")
    return own_tasks().load([config | {"task": name, "metadata": {"version": 1.0, "prompts": str(prompts)}}])


def load_task(settings: TaskSettings, questions: Path | None = None) -> LoadedTasks:
    """A task or group of tasks, with its number of few-shot examples set.

    Args:
        questions: folder made by `fetch_questions`; None: the harness loads the questions itself.

    Raises:
        UserError: there is no such task, it generates text, or its metric is none or no mean over questions.
    """
    manager = task_manager(settings.task)
    with questions_from(questions):
        loaded = manager.load([settings.task])
    for leaf in loaded["tasks"].values():
        check_metric(settings, leaf)
        if settings.num_fewshot is not None:
            leaf.set_config(key="num_fewshot", value=settings.num_fewshot)
        elif leaf.get_config("num_fewshot") is None:
            leaf.set_config(key="num_fewshot", value=0)
        leaf.set_fewshot_seed(seed=FEWSHOT_SEED)
    return loaded


def check_metric(settings: TaskSettings, leaf: Any) -> None:
    """Raise a UserError unless a task's metric is a mean over its questions, which intervals and paired tests need."""
    task, metric, known = settings.task, settings.metric, leaf.aggregation()
    if leaf.OUTPUT_TYPE == "generate_until":
        raise UserError(
            f"evaluation.suites: task {task!r} generates text; only tasks that compare log-probabilities work"
        )
    if metric not in known:
        raise UserError(f"evaluation.suites: task {task!r} has no metric {metric!r} (it has {', '.join(known)})")
    means = [name for name, aggregation in known.items() if aggregation.__name__ in MEANS]
    if metric not in means:
        others = f"; use {' or '.join(means)}" if means else ""
        raise UserError(
            f"evaluation.suites: {metric!r} of task {task!r} is no mean over its questions"
            f" (lm-evaluation-harness computes it as {known[metric].__name__}), so answers cannot be compared"
            f" one by one{others}"
        )


def dataset_folder(folder: Path, dataset: str, configuration: str | None) -> Path:
    """Folder of a dataset's splits, one parquet file per split."""
    return folder / dataset.replace("/", "__") / (configuration or "default")


@contextmanager
def questions_from(folder: Path | None) -> Iterator[None]:
    """Within this context, tasks read the hub's questions from files below `folder` into memory.

    Raises:
        UserError: a task's questions are missing.
    """
    if folder is None:
        yield
        return
    download = ConfigurableTask.download

    def read(self: ConfigurableTask, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if callable(self.config.custom_dataset):
            download(self, dataset_kwargs, **kwargs)
            return
        files = sorted(
            dataset_folder(folder, str(self.config.dataset_path), self.config.dataset_name).glob("*.parquet")
        )
        if not files:
            raise UserError(f"{folder}: no questions of {self.config.dataset_path} {self.config.dataset_name or ''}")
        self.dataset = {file.stem: datasets.Dataset(pq.read_table(file)) for file in files}

    ConfigurableTask.download = read  # type: ignore[method-assign]  # the harness accepts no task class of ours
    try:
        yield
    finally:
        ConfigurableTask.download = download  # type: ignore[method-assign]
