"""What is checked before anything runs: files, columns, labels and templates that the config names."""

from collections.abc import Mapping
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
