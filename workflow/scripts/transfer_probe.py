"""Test a probe on the val rows of other probes."""

from dataclasses import dataclass
from pathlib import Path

from elkflow.common.cli import parse, run
from elkflow.common.errors import UserError
from elkflow.common.files import write_text
from elkflow.common.manifests import check_against_manifests, write_manifest
from elkflow.config.probe import ProbeSettings
from elkflow.probes import saved_probe
from elkflow.probes.contrast_pairs import ContrastPairs
from elkflow.probes.transfer_probe import transfer_table


@dataclass(frozen=True)
class Arguments:
    """Write one row of the transfer matrix."""

    settings: ProbeSettings
    probe: Path  # folder
    names: list[str]  # of the probes tested on, the probe itself first
    prompts: list[Path]  # their val prompts
    states: list[Path]
    lineage: list[Path]  # manifests of probe, prompts and states
    output: Path
    manifest: Path


def main(argv: list[str] | None = None) -> None:
    """Read the probe and every target, and write the table."""
    arguments = parse(Arguments, argv)
    check_against_manifests(*arguments.states, *arguments.prompts, arguments.probe / "probe.json")
    if not len(arguments.names) == len(arguments.prompts) == len(arguments.states):
        raise UserError("--names, --prompts and --states must be equally many")
    files = zip(arguments.names, arguments.prompts, arguments.states, strict=True)
    targets = {name: ContrastPairs.read([prompts], [states]) for name, prompts, states in files}
    settings = arguments.settings
    table = transfer_table(
        saved_probe.load_probe(arguments.probe),
        targets,
        folder=arguments.probe,
    )
    write_text(arguments.output, table.to_csv(index=False))
    write_manifest(
        arguments.manifest,
        outputs={"transfer.csv": arguments.output},
        inputs={"/".join(path.parts[-4:]): path for path in arguments.lineage},
        settings=settings,
    )


if __name__ == "__main__":
    run(main)
