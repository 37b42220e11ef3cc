"""Follow the manifests from the verdict back to the rows of the dataset, and name every broken link."""

from dataclasses import dataclass
from pathlib import Path

from elkflow.common.cli import parse, run
from elkflow.verify.manifest_chain import verify_chain


@dataclass(frozen=True)
class Arguments:
    """Command line of this script."""

    results: Path = Path("results")


def main(argv: list[str] | None = None) -> None:
    found = verify_chain(parse(Arguments, argv).results)
    print("\n".join(found))
    print(f"every link holds: {len(found)} artefacts, from the verdict to the rows of the dataset")


if __name__ == "__main__":
    run(main)
