"""Score one piece of a split with a frozen probe; `score_answers` puts the pieces together."""

import logging
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from elkflow.common.cli import parse, run
from elkflow.common.files import write_table
from elkflow.common.manifests import check_against_manifests, check_manifest
from elkflow.probes import saved_probe
from elkflow.probes.contrast_pairs import ContrastPairs
from elkflow.probes.prompt_match import check_prompt_format
from elkflow.rewards.score_answers import pair_log_odds, shard_rows


@dataclass(frozen=True)
class Arguments:
    """Score a piece of a split."""

    probe: Path  # folder
    prompts: list[Path]  # one a wording that the probe reads
    states: list[Path]
    shard: str  # as Snakemake names pieces: 2-of-4
    odds: Path


def main(argv: list[str] | None = None) -> None:
    """Read probe and pairs, score this piece's rows, write their log-odds."""
    arguments = parse(Arguments, argv)
    check_manifest(arguments.probe / "manifest.json")
    check_against_manifests(*arguments.prompts, *arguments.states)
    probe = saved_probe.load_probe(arguments.probe)
    check_prompt_format(probe, arguments.probe, arguments.prompts[0])
    pairs = ContrastPairs.read(arguments.prompts, arguments.states, labelled=False)
    number, total = map(int, arguments.shard.split("-of-"))
    rows = shard_rows(len(pairs), number, total)
    write_table(pa.table({"log_odds": pair_log_odds(probe, pairs, arguments.probe, rows)}), arguments.odds)
    logging.getLogger("elkflow").info("rows %d to %d of %d", *rows, len(pairs))


if __name__ == "__main__":
    run(main)
