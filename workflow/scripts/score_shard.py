"""Score one shard of a split with a frozen probe; `score_answers` joins the shards."""

import logging
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from elkflow.common.cli import parse, run
from elkflow.common.files import write_table
from elkflow.rewards.score_shard import pair_log_odds, read_probe_and_pairs, shard_rows


@dataclass(frozen=True)
class Arguments:
    """Score a shard of a split."""

    probe: Path  # folder
    prompts: list[Path]  # one per wording that the probe reads
    states: list[Path]
    shard: str  # as Snakemake names them: 2-of-4
    odds: Path


def main(argv: list[str] | None = None) -> None:
    """Write the log-odds of this shard's rows."""
    arguments = parse(Arguments, argv)
    probe, pairs = read_probe_and_pairs(arguments.probe, arguments.prompts, arguments.states)
    number, total = map(int, arguments.shard.split("-of-"))
    rows = shard_rows(len(pairs), number, total)
    write_table(pa.table({"log_odds": pair_log_odds(probe, pairs, arguments.probe, rows)}), arguments.odds)
    logging.getLogger("elkflow").info("rows %d to %d of %d", *rows, len(pairs))


if __name__ == "__main__":
    run(main)
