"""Walk from the verdict back to the rows of the dataset, and say which link is broken, if one is."""

from dataclasses import dataclass
from pathlib import Path

from elkflow.common.cli import parse, run
from elkflow.verify.manifest_chain import verify


@dataclass(frozen=True)
class Arguments:
    """Command line of this script."""

    results: Path = Path("results")


def main(argv: list[str] | None = None) -> None:
    found = verify(parse(Arguments, argv).results)
    print("\n".join(found))
    print(f"every link holds: {len(found)} artefacts, from the verdict to the rows of the dataset")


if __name__ == "__main__":
    run(main)
