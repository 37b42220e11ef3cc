"""Score every allowed answer of a split with a frozen probe."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from elkflow.common.cli import parse, run
from elkflow.common.files import read_table, write_table
from elkflow.common.manifests import check_against_manifests, check_manifest, write_manifest
from elkflow.probes import saved_probe
from elkflow.probes.contrast_pairs import ContrastPairs
from elkflow.probes.prompt_match import check_prompt_format
from elkflow.rewards.score_answers import pair_log_odds, reward_table


@dataclass(frozen=True)
class Arguments:
    """Make the reward table of a split."""

    probe: Path  # folder
    prompts: list[Path]  # one a wording that the probe reads
    states: list[Path]
    lineage: list[Path]  # manifests of the probe and of the states
    rewards: Path
    manifest: Path
    shards: list[Path] = field(default_factory=list)  # log-odds scored elsewhere, in the order of the rows


def main(argv: list[str] | None = None) -> None:
    """Read probe and pairs, score, write table and manifest."""
    arguments = parse(Arguments, argv)
    check_manifest(arguments.probe / "manifest.json")
    check_against_manifests(*arguments.prompts, *arguments.states)
    probe = saved_probe.load_probe(arguments.probe)
    check_prompt_format(probe, arguments.probe, arguments.prompts[0])
    pairs = ContrastPairs.read(arguments.prompts, arguments.states, labelled=False)
    if arguments.shards:
        odds = np.concatenate([read_table(path, ["log_odds"])["log_odds"].to_numpy() for path in arguments.shards])
    else:
        odds = pair_log_odds(probe, pairs, arguments.probe)
    table, facts = reward_table(pairs, odds)
    write_table(table, arguments.rewards)
    write_manifest(
        arguments.manifest,
        outputs={"rewards": arguments.rewards},
        inputs={"/".join(path.parts[-4:]): path for path in arguments.lineage},
        **facts,
    )
    logging.getLogger("elkflow").info("%d questions; picking the higher reward is right in %s", len(table), facts)


if __name__ == "__main__":
    run(main)
