"""Divide a dataset's rows between the probe, the policy and the evaluation."""

from dataclasses import dataclass, field
from pathlib import Path

from elkflow.common.cli import parse, run, timed
from elkflow.common.manifests import write_manifest
from elkflow.config.data import SPLITS, QuestionSettings
from elkflow.data.split_dataset import split_dataset


@dataclass(frozen=True)
class Arguments:
    """Split a dataset."""

    settings: QuestionSettings
    folder: Path
    sources: list[Path] = field(default_factory=list)
    read: list[str] = field(default_factory=list)  # fields of each wording, joined by commas


def main(argv: list[str] | None = None) -> None:
    """Write train.parquet, ppo.parquet, val.parquet and manifest.json into the folder."""
    arguments = parse(Arguments, argv)
    with timed("split"):
        facts = split_dataset(arguments.settings, arguments.folder, [each.split(",") for each in arguments.read])
    write_manifest(
        arguments.folder / "manifest.json",
        outputs={name: arguments.folder / f"{name}.parquet" for name in SPLITS},
        inputs={str(path): path for path in arguments.sources},  # files of two folders may have one name
        settings=arguments.settings,
        seed=arguments.settings.split.seed if arguments.settings.split else None,
        **facts,
    )


if __name__ == "__main__":
    run(main)
