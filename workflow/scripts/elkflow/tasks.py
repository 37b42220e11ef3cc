"""Tasks of lm-evaluation-harness: finding them, downloading their questions once, loading them from those files."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
from huggingface_hub import HfApi
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from elkflow.cli import progress
from elkflow.errors import UserError
from elkflow.settings.evaluation import TaskSettings

TASKS = Path(__file__).parents[2] / "tasks"
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


def sources(task: str) -> dict[tuple[str, str], set[str]]:
    """Which datasets a task or group needs: (hub id, configuration) to the names of its splits.

    Told from the task files alone, nothing is loaded. An empty configuration is the dataset's default one.
    """
    index = manager_of(task).task_index
    found: dict[tuple[str, str], set[str]] = {}
    todo: list[str] = [task]
    while todo:
        entry = index[todo.pop()]
        config = load_yaml(entry.yaml_path, resolve_func=False) if entry.yaml_path else (entry.cfg or {})
        parts = entry.tags if entry.yaml_path is None else config.get("task")
        if isinstance(parts, set | list):  # a tag, or a group
            todo += [
                part if isinstance(part, str) else part.get("task") or part["group"] for part in sorted(parts, key=str)
            ]
        elif "custom_dataset" not in config and config.get("dataset_path"):
            key = (config["dataset_path"], config.get("dataset_name") or "")
            found.setdefault(key, set()).update(config[name] for name in SPLITS if config.get(name))
    return found


def place(folder: Path, dataset: str, configuration: str | None) -> Path:
    """Folder of a dataset's splits, one parquet file each."""
    return folder / dataset.replace("/", "__") / (configuration or "default")


def fetch(names: Sequence[str], folder: Path, revisions: Mapping[str, str] | None = None) -> dict[str, str]:
    """Download the questions of tasks as parquet files below `folder`; return the commit taken of each dataset.

    Raises:
        UserError: a dataset cannot be reached; names it and says what to do without a network.
    """
    wanted: dict[tuple[str, str], set[str]] = {}
    for name in names:
        for key, splits in sources(name).items():
            wanted.setdefault(key, set()).update(splits)
    commits = dict(revisions or {})
    for (dataset, configuration), splits in progress(sorted(wanted.items()), "questions"):
        try:
            if dataset not in commits:
                commits[dataset] = str(HfApi().dataset_info(dataset).sha)
            for split in sorted(splits):
                rows = datasets.load_dataset(dataset, configuration or None, split=split, revision=commits[dataset])
                target = place(folder, dataset, configuration) / f"{split}.parquet"
                target.parent.mkdir(parents=True, exist_ok=True)
                rows.to_parquet(target)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"evaluation.suites: dataset {dataset!r} cannot be downloaded ({cause}); without a network, run"
                " `snakemake fetch_questions` where there is one and copy results/evaluations/questions* here"
            ) from None
    return {dataset: commits[dataset] for dataset, _ in sorted(wanted)}


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
