"""Compute every number of the summary again from its files, and the main ones also by independent code."""

from dataclasses import dataclass
from pathlib import Path

from elkflow.common.cli import parse, run
from elkflow.common.errors import UserError
from elkflow.verify.independent import recompute_independently
from elkflow.verify.recompute import recompute_summary


@dataclass(frozen=True)
class Arguments:
    """Command line of this script."""

    results: Path = Path("results")


def main(argv: list[str] | None = None) -> None:
    results = parse(Arguments, argv).results
    count = recompute_summary(results)
    print(f"all {count} numbers of the verdict come out again")
    checked, wrong = recompute_independently(results)
    if wrong:
        raise UserError("numbers that independent code computes differently:\n  " + "\n  ".join(wrong))
    print(f"{checked} main numbers, computed with pandas, statsmodels and scikit-learn alone: the same")


if __name__ == "__main__":
    run(main)
