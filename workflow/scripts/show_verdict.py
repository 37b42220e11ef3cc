"""Print the verdict as a short table."""

from dataclasses import dataclass
from pathlib import Path

from elkflow.common.cli import parse, run
from elkflow.common.files import read_json
from elkflow.report.terminal import verdict_text


@dataclass(frozen=True)
class Arguments:
    """Command line of this script."""

    verdict: Path = Path("results/summary/verdict.json")


def main(argv: list[str] | None = None) -> None:
    print(verdict_text(read_json(parse(Arguments, argv).verdict)))


if __name__ == "__main__":
    run(main)
