"""Downloading the questions of harness tasks from the hub, once."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
from huggingface_hub import HfApi
from lm_eval.tasks._yaml_loader import load_yaml

from elkflow.common.cli import progress
from elkflow.common.errors import UserError, first_line
from elkflow.evaluation.harness_tasks import SPLITS, dataset_folder, task_manager


def hub_datasets(task: str) -> dict[tuple[str, str], set[str]]:
    """The datasets of a task or group: (hub id, configuration) to names of splits.

    Read from the task files alone; no dataset is loaded. An empty configuration is the default one.
    """
    index = task_manager(task).task_index
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


def fetch_questions(tasks: Sequence[str], folder: Path, revisions: Mapping[str, str] | None = None) -> dict[str, str]:
    """Download the questions of tasks as parquet files below `folder`; return the commit of each dataset.

    Args:
        revisions: dataset to the commit to take; others are taken at their newest.

    Raises:
        UserError: a dataset cannot be downloaded; says what to do without a network.
    """
    wanted: dict[tuple[str, str], set[str]] = {}
    for task in tasks:
        for key, splits in hub_datasets(task).items():
            wanted.setdefault(key, set()).update(splits)
    commits = dict(revisions or {})
    for (dataset, configuration), splits in progress(sorted(wanted.items()), "questions"):
        try:
            if dataset not in commits:
                commits[dataset] = str(HfApi().dataset_info(dataset).sha)
            for split in sorted(splits):
                rows = datasets.load_dataset(dataset, configuration or None, split=split, revision=commits[dataset])
                target = dataset_folder(folder, dataset, configuration) / f"{split}.parquet"
                target.parent.mkdir(parents=True, exist_ok=True)
                rows.to_parquet(target)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise UserError(
                f"evaluation.suites: dataset {dataset!r} cannot be downloaded ({first_line(error)}); without a network,"
                " run `snakemake fetch_questions` where there is one and copy results/evaluations/questions* here"
            ) from None
    return {dataset: commits[dataset] for dataset, _ in sorted(wanted)}
