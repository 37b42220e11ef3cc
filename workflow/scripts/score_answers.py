"""Score every allowed answer of a split with a frozen probe."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from elkflow.common.cli import parse, run
from elkflow.common.files import read_table, write_table
from elkflow.common.manifests import write_manifest
from elkflow.rewards.score_answers import reward_table
from elkflow.rewards.score_shard import pair_log_odds, read_probe_and_pairs


@dataclass(frozen=True)
class Arguments:
    """Make the reward table of a split."""

    probe: Path  # folder
    prompts: list[Path]  # one per wording that the probe reads
    states: list[Path]
    lineage: list[Path]  # manifests of the probe and of the states
    rewards: Path
    manifest: Path
    shards: list[Path] = field(default_factory=list)  # log-odds computed by score_shard, in the order of the rows


def main(argv: list[str] | None = None) -> None:
    """Write the reward table and its manifest."""
    arguments = parse(Arguments, argv)
    probe, pairs = read_probe_and_pairs(arguments.probe, arguments.prompts, arguments.states)
    if arguments.shards:
        odds = np.concatenate([read_table(path, ["log_odds"])["log_odds"].to_numpy() for path in arguments.shards])
    else:
        odds = pair_log_odds(probe, pairs, arguments.probe)
    table, facts = reward_table(pairs, odds, probe.facts.get("arm"))
    write_table(table, arguments.rewards)
    write_manifest(
        arguments.manifest,
        outputs={"rewards": arguments.rewards},
        inputs={"/".join(path.parts[-4:]): path for path in arguments.lineage},
        **facts,
    )
    logging.getLogger("elkflow").info("%d questions, gold ceiling %s", len(table), facts["gold_ceiling"])


if __name__ == "__main__":
    run(main)
