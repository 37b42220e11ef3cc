"""Merge a trained adapter into its model, and check that both give the same logits."""

from dataclasses import dataclass
from pathlib import Path

from elkflow.common.cli import parse, run
from elkflow.common.files import read_json
from elkflow.common.manifests import check_against_manifests, write_manifest
from elkflow.config.model import ModelSettings
from elkflow.ppo.merge_lora import merge


@dataclass(frozen=True)
class Arguments:
    """Merge an adapter."""

    model_settings: ModelSettings
    model: Path  # checkpoint folder
    adapter: Path
    prompts: Path  # texts to compare on
    lineage: list[Path]  # manifests of the model and of the run
    merged: Path
    manifest: Path


def main(argv: list[str] | None = None) -> None:
    """Merge, compare, and write the checkpoint with its manifest."""
    arguments = parse(Arguments, argv)
    check_against_manifests(arguments.model, arguments.adapter, arguments.prompts)
    facts = merge(arguments.model, arguments.adapter, arguments.prompts, arguments.merged, arguments.model_settings)
    facts_of = [read_json(path)["facts"] for path in arguments.lineage]
    kept = next((told["kept"] for told in facts_of if "kept" in told), None)
    write_manifest(
        arguments.manifest,
        outputs={"checkpoint": arguments.merged},
        inputs=dict(zip(("model", "adapter"), arguments.lineage, strict=True)),
        settings=arguments.model_settings.loading(),
        step=kept,
        **facts,
    )


if __name__ == "__main__":
    run(main)
