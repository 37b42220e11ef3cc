"""Push one run's merged model and its card to the hub; only on request."""

from dataclasses import dataclass
from pathlib import Path

from elkflow.common.cli import parse, run
from elkflow.publish.push_model import push_model


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
    print(push_model(folder / "merged", folder / "README.md", arguments.repo, arguments.private))


if __name__ == "__main__":
    run(main)
