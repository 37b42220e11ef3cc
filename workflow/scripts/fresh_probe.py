"""Evaluate the frozen probe and a fresh one on the tuned model's states."""

from dataclasses import dataclass, field
from pathlib import Path

from elkflow.common.cli import parse, run, timed
from elkflow.common.files import write_json
from elkflow.common.manifests import check_against_manifests, write_manifest
from elkflow.config.probe import ProbeSettings
from elkflow.probes import saved_probe
from elkflow.probes.contrast_pairs import ContrastPairs
from elkflow.probes.fresh_probe import frozen_and_fresh, read_off_domain


@dataclass(frozen=True)
class Arguments:
    """Command line of this script."""

    settings: ProbeSettings
    probe: Path  # folder of the frozen probe
    policy: str  # name of the model that was tuned
    train_prompts: list[Path]  # one per wording, the main one first
    val_prompts: list[Path]
    train_states: list[Path]  # the tuned model's
    val_states: list[Path]
    lineage: list[Path]  # manifests of the probe and of the states
    output: Path
    manifest: Path
    off_domain: list[Path] = field(default_factory=list)  # probe.json of those fitted on other questions
    base_states: list[Path] = field(default_factory=list)  # for those: the untuned model's on val


def main(argv: list[str] | None = None) -> None:
    arguments = parse(Arguments, argv)
    check_against_manifests(arguments.probe / "probe.safetensors", *arguments.train_prompts, *arguments.val_prompts)
    check_against_manifests(*arguments.train_states, *arguments.val_states)
    train = ContrastPairs.read(arguments.train_prompts, arguments.train_states)
    val = ContrastPairs.read(arguments.val_prompts, arguments.val_states)
    with timed("fresh probe"):
        found = frozen_and_fresh(
            saved_probe.load_probe(arguments.probe), arguments.settings, arguments.policy, train, val
        )
    if arguments.off_domain:
        check_against_manifests(*(path.with_name("probe.safetensors") for path in arguments.off_domain))
        check_against_manifests(*arguments.base_states)
        base = ContrastPairs.read(arguments.val_prompts, arguments.base_states)
        elsewhere = {path.parent.name: saved_probe.load_probe(path.parent) for path in arguments.off_domain}
        found["off_domain"] = read_off_domain(elsewhere, base, val)
    write_json(arguments.output, found)
    write_manifest(
        arguments.manifest,
        outputs={"fresh_probe": arguments.output},
        inputs={"/".join(path.parts[-4:]): path for path in arguments.lineage},
        settings=arguments.settings,
        seed=arguments.settings.seed,
    )


if __name__ == "__main__":
    run(main)
