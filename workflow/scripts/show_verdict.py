"""Print the verdict as a short table."""

from dataclasses import dataclass
from pathlib import Path

from elkflow.cli import parse, run
from elkflow.files import read_json
from elkflow.findings import verdict_text


@dataclass(frozen=True)
class Arguments:
    """Command line of this script."""

    verdict: Path = Path("results/summary/verdict.json")


def main(argv: list[str] | None = None) -> None:
    print(verdict_text(read_json(parse(Arguments, argv).verdict)))


if __name__ == "__main__":
    run(main)
