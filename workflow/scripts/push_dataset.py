"""Push a dataset's splits, manifest and card to the hub; only on request."""

from dataclasses import dataclass
from pathlib import Path

from elkflow.common.cli import parse, run
from elkflow.common.files import write_json
from elkflow.publish.dataset_card import dataset_card
from elkflow.publish.push_dataset import push_dataset


@dataclass(frozen=True)
class Arguments:
    """Push a dataset."""

    name: str
    repo: str
    folder: Path
    receipt: Path
    licence: str | None = None


def main(argv: list[str] | None = None) -> None:
    """Push, and write repository, commit and address to `receipt`."""
    arguments = parse(Arguments, argv)
    card = dataset_card(arguments.name, arguments.licence, arguments.folder / "manifest.json")
    write_json(arguments.receipt, push_dataset(arguments.folder, arguments.repo, card))


if __name__ == "__main__":
    run(main)
