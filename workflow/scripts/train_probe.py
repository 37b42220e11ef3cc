"""Fit truth probes on all layers, choose one, compare it with its controls, and store it."""

from dataclasses import dataclass, field
from pathlib import Path

from elkflow.common.cli import parse, run
from elkflow.common.files import read_table
from elkflow.common.manifests import check_against_manifests, write_manifest
from elkflow.config.probe import ProbeSettings
from elkflow.probes.contrast_pairs import ContrastPairs
from elkflow.probes.prompt_match import probe_origin
from elkflow.probes.train_probe import OUTPUT_FILES, train_probe


@dataclass(frozen=True)
class Arguments:
    """Fit a truth probe."""

    settings: ProbeSettings
    train_rows: Path  # data/{dataset}/train.parquet
    val_rows: Path
    train_prompts: list[Path]  # one a wording, the main one first
    val_prompts: list[Path]
    train_states: list[Path]
    val_states: list[Path]
    lineage: list[Path]  # manifests of the states
    output: Path  # folder
    untrained_prompts: list[Path] = field(default_factory=list)  # as train_prompts, then as val_prompts
    untrained_states: list[Path] = field(default_factory=list)


def main(argv: list[str] | None = None) -> None:
    """Read pairs, hand them to the library, write the manifest."""
    arguments = parse(Arguments, argv)
    check_against_manifests(arguments.train_rows, arguments.val_rows, *arguments.train_prompts, *arguments.val_prompts)
    check_against_manifests(*arguments.train_states, *arguments.val_states)
    rows = (read_table(arguments.train_rows).to_pandas(), read_table(arguments.val_rows).to_pandas())
    train = ContrastPairs.read(arguments.train_prompts, arguments.train_states)
    val = ContrastPairs.read(arguments.val_prompts, arguments.val_states)
    untrained = None
    if paths := arguments.untrained_states:
        check_against_manifests(*paths)
        half = len(paths) // 2
        read, prompts = (paths[:half], paths[half:]), arguments.untrained_prompts
        untrained = (ContrastPairs.read(prompts[:half], read[0]), ContrastPairs.read(prompts[half:], read[1]))
    asked = probe_origin(arguments.train_prompts[0], arguments.train_states[0])
    facts = train_probe(arguments.settings, train, val, rows, asked, arguments.output, untrained)
    write_manifest(
        arguments.output / "manifest.json",
        outputs={name: arguments.output / name for name in OUTPUT_FILES},
        inputs={"/".join(path.parts[-4:]): path for path in arguments.lineage}
        | {"train": arguments.train_rows, "val": arguments.val_rows},
        settings=arguments.settings,
        seed=arguments.settings.seed,
        **facts,
    )


if __name__ == "__main__":
    run(main)
