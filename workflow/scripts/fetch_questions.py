"""Download the questions of harness tasks from the hub."""

from dataclasses import dataclass
from pathlib import Path

from elkflow.common.cli import parse, run
from elkflow.common.files import atomic
from elkflow.common.manifests import write_manifest
from elkflow.evaluation.fetch_questions import fetch_questions


@dataclass(frozen=True)
class Arguments:
    """Command line of this script."""

    tasks: list[str]
    revisions: dict[str, str]  # hub dataset to commit
    folder: Path
    manifest: Path


def main(argv: list[str] | None = None) -> None:
    """Download all questions or none, and write the manifest."""
    arguments = parse(Arguments, argv)
    with atomic(arguments.folder) as temporary:
        temporary.mkdir()
        commits = fetch_questions(arguments.tasks, temporary, arguments.revisions)
    write_manifest(
        arguments.manifest,
        outputs={"questions": arguments.folder},
        inputs={},
        settings={"tasks": arguments.tasks},
        revisions=commits,
    )


if __name__ == "__main__":
    run(main)
