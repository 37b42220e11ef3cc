"""What is checked before anything runs: files, columns, labels and templates that the config names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elkflow.common.errors import UserError
from elkflow.config.config import Config


def load(raw: Mapping[str, Any], files: bool = True) -> Config:
    """The checked config behind a parsed YAML file, with `files` also the files that it names.

    Raises:
        UserError: the first thing wrong.
    """
    config = Config.load(raw)
    if files:
        preflight(config)
    return config


def preflight(config: Config) -> None:
    """Check what can be checked without a model: the datasets on disk, and the templates.

    Raises:
        UserError: a file, column, label or size that does not fit.
    """
    from elkflow.data.check_dataset import check_dataset

    for name, dataset in config.datasets.items():
        if dataset.mixture is not None:
            continue  # its members are checked
        try:
            check_dataset(dataset)
        except UserError as error:
            raise UserError(f"datasets.{name}: {error}") from None
    for name, model in config.models.items():
        if model.path and not Path(model.path).is_dir():
            raise UserError(f"models.{name}.path: {model.path}: no such folder")
    for name, probe in config.probes.items():
        for wording in probe.wordings():
            _check_two_answers(config, name, wording)


def _check_two_answers(config: Config, name: str, wording: str) -> None:
    """A probe compares two answers, which the templates of its dataset tell before any state is read.

    Raises:
        UserError: a wording of the probe has more answers.
    """
    from elkflow.prompts.templates import load_template

    probe = config.probes[name]
    for member in config.datasets[probe.dataset].mixture or [probe.dataset]:
        dataset = config.datasets[member]
        asked = dataset.wordings[wording]
        answers = load_template(asked.template).fixed_choices or (None if asked.about else dataset.answers)
        if answers is not None and len(answers) != 2:
            raise UserError(
                f"probes.{name}: a probe compares two answers, {wording!r} of {member} has {len(answers)}"
                f" ({', '.join(answers)[:80]}); ask of each answer whether it is right, by a wording with `about`"
            )
