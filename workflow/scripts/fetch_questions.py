"""Download the questions of harness tasks that take theirs from the hub."""

from dataclasses import dataclass
from pathlib import Path

from elkflow.common.cli import parse, run
from elkflow.common.files import atomic
from elkflow.common.manifests import write_manifest
from elkflow.evaluation.fetch_questions import fetch


@dataclass(frozen=True)
class Arguments:
    """Command line of this script."""

    tasks: list[str]
    revisions: dict[str, str]  # hub dataset to the commit to take
    folder: Path
    manifest: Path


def main(argv: list[str] | None = None) -> None:
    """Fetch all or nothing."""
    arguments = parse(Arguments, argv)
    with atomic(arguments.folder) as temporary:
        temporary.mkdir()
        commits = fetch(arguments.tasks, temporary, arguments.revisions)
    write_manifest(
        arguments.manifest,
        outputs={"questions": arguments.folder},
        inputs={},
        settings={"tasks": arguments.tasks},
        revisions=commits,
    )


if __name__ == "__main__":
    run(main)
