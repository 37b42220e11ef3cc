"""Compute every number of the summary again from the files under it, the headline figures by other means, too."""

from dataclasses import dataclass
from pathlib import Path

from elkflow.common.cli import parse, run
from elkflow.common.errors import UserError
from elkflow.verify.independent import headlines
from elkflow.verify.recompute import recompute


@dataclass(frozen=True)
class Arguments:
    """Command line of this script."""

    results: Path = Path("results")


def main(argv: list[str] | None = None) -> None:
    results = parse(Arguments, argv).results
    count = recompute(results)
    print(f"all {count} numbers of the verdict come out again")
    checked, wrong = headlines(results)
    if wrong:
        raise UserError("figures that other means give otherwise:\n  " + "\n  ".join(wrong))
    print(f"{checked} headline figures by pandas, scipy and scikit-learn alone: the same")


if __name__ == "__main__":
    run(main)
