"""Compute every number of the summary again from the files under it, and say which differ."""

from dataclasses import dataclass
from pathlib import Path

from elkflow.cli import parse, run
from elkflow.recompute import recompute


@dataclass(frozen=True)
class Arguments:
    """Command line of this script."""

    results: Path = Path("results")


def main(argv: list[str] | None = None) -> None:
    count = recompute(parse(Arguments, argv).results)
    print(f"all {count} numbers of the verdict come out again")


if __name__ == "__main__":
    run(main)
