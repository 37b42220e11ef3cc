"""Download what a config needs from the hub, where there is a network, so that all stages can run without one."""

from dataclasses import dataclass
from pathlib import Path

from elkflow.common.cli import parse, run
from elkflow.common.files import write_json
from elkflow.config.data import QuestionSettings
from elkflow.data.prefetch import prefetch_datasets


@dataclass(frozen=True)
class Arguments:
    """Fill the cache of datasets."""

    datasets: dict[str, QuestionSettings]
    record: Path


def main(argv: list[str] | None = None) -> None:
    """Write the revisions found to `record`."""
    arguments = parse(Arguments, argv)
    write_json(arguments.record, {"datasets": prefetch_datasets(arguments.datasets)})


if __name__ == "__main__":
    run(main)
