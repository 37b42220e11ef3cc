"""Join datasets, or their prompts in one wording, into a mixture."""

from dataclasses import dataclass
from pathlib import Path

from elkflow.common.cli import parse, run, timed
from elkflow.common.files import read_json
from elkflow.common.manifests import check_manifest, write_manifest
from elkflow.config.data import SPLITS
from elkflow.data.mix_datasets import mix_datasets


@dataclass(frozen=True)
class Arguments:
    """Join datasets."""

    names: list[str]
    manifests: list[Path]  # of their split files, in the same order
    folder: Path


def main(argv: list[str] | None = None) -> None:
    """Write train.parquet, ppo.parquet, val.parquet and manifest.json into the folder."""
    arguments = parse(Arguments, argv)
    manifests = dict(zip(arguments.names, arguments.manifests, strict=True))
    for manifest in manifests.values():
        check_manifest(manifest)
    with timed("mix"):
        facts = mix_datasets({name: manifest.parent for name, manifest in manifests.items()}, arguments.folder)
    settings = {"mixture": arguments.names}
    first = read_json(arguments.manifests[0])["settings"]
    if first.get("prompts", {}).get("wording", {}).get("about"):  # the config sees to it that all share a template
        settings |= {"prompts": first["prompts"], "chat": first["chat"]}
    write_manifest(
        arguments.folder / "manifest.json",
        outputs={name: arguments.folder / f"{name}.parquet" for name in SPLITS},
        inputs=manifests,
        settings=settings,
        **facts,
    )


if __name__ == "__main__":
    run(main)
