"""Tasks of lm-evaluation-harness: finding them, downloading their questions once, loading them from those files."""

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
SEED = 1234
"""Of the harness's choice of worked examples: its own default, so that figures compare with published ones."""
Loaded = Mapping[str, Any]


@cache
def ours() -> TaskManager:
    """The tasks of workflow/tasks."""
    return TaskManager(include_path=str(TASKS), include_defaults=False)


@cache
def every() -> TaskManager:
    """Ours and the harness's own: it reads thousands of files (ten seconds), so only where it is needed."""
    return TaskManager(include_path=str(TASKS))


def manager_of(task: str) -> TaskManager:
    """The smaller one of the managers that know a task.

    Raises:
        UserError: none does.
    """
    for manager in (ours, every):
        if task in manager().all_tasks:
            return manager()
    raise UserError(f"evaluation.suites: lm-evaluation-harness has no task {task!r}")


def load_wording(name: str, prompts: Path) -> Loaded:
    """The yes/no task over a file of rendered prompts, named after their wording."""
    config = load_yaml(TASKS / "yes_no.yaml")
    return ours().load([config | {"task": name, "metadata": {"version": 1.0, "prompts": str(prompts)}}])


def load_task(settings: TaskSettings, questions: Path | None = None) -> Loaded:
    """A task, or a group of tasks, with its worked examples chosen.

    Args:
        questions: folder of `fetch`; none: the tasks bring their own questions, or the hub is asked.
    """
    manager = manager_of(settings.task)
    with stored(questions):
        loaded = manager.load([settings.task])
    for leaf in loaded["tasks"].values():
        if settings.num_fewshot is not None:
            leaf.set_config(key="num_fewshot", value=settings.num_fewshot)
        elif leaf.get_config("num_fewshot") is None:
            leaf.set_config(key="num_fewshot", value=0)
        leaf.set_fewshot_seed(seed=SEED)
    return loaded


def place(folder: Path, dataset: str, configuration: str | None) -> Path:
    """Folder of a dataset's splits, one parquet file each."""
    return folder / dataset.replace("/", "__") / (configuration or "default")


@contextmanager
def stored(folder: Path | None) -> Iterator[None]:
    """Within, tasks of the hub take their questions from the files below `folder`, held in memory.

    Raises:
        UserError: a task's questions are not there.
    """
    if folder is None:
        yield
        return
    download = ConfigurableTask.download

    def read(self: ConfigurableTask, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if callable(self.config.custom_dataset):
            download(self, dataset_kwargs, **kwargs)
            return
        files = sorted(place(folder, str(self.config.dataset_path), self.config.dataset_name).glob("*.parquet"))
        if not files:
            raise UserError(
                f"{folder}: has no questions of {self.config.dataset_path} {self.config.dataset_name or ''}"
            )
        self.dataset = {file.stem: datasets.Dataset(pq.read_table(file)) for file in files}

    ConfigurableTask.download = read  # type: ignore[method-assign]  # the factory takes no class of ours
    try:
        yield
    finally:
        ConfigurableTask.download = download  # type: ignore[method-assign]
