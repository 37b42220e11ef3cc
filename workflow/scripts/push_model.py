"""Send one run's merged model and its card to the hub; never done unless asked for."""

from dataclasses import dataclass
from pathlib import Path

from elkflow.common.cli import parse, run
from elkflow.publish.push_model import push


@dataclass(frozen=True)
class Arguments:
    """Command line of this script."""

    run: str
    repo: str  # owner/name
    seed: int = 0
    private: bool = True
    results: Path = Path("results")


def main(argv: list[str] | None = None) -> None:
    arguments = parse(Arguments, argv)
    folder = arguments.results / "runs" / arguments.run / f"seed{arguments.seed}"
    print(push(folder / "merged", folder / "README.md", arguments.repo, arguments.private))


if __name__ == "__main__":
    run(main)
