"""What the reward achieves at test time without training: the baseline that training must beat."""

from dataclasses import dataclass
from pathlib import Path

from elkflow.common.cli import parse, run
from elkflow.common.files import read_table, write_text
from elkflow.common.manifests import check_against_manifests, write_manifest
from elkflow.evaluation.without_rl import join_by_question, without_rl


@dataclass(frozen=True)
class Arguments:
    """Command line of this script."""

    name: str  # of the run
    wording: str  # the run's
    counts: list[int]  # values of N, for best-of-N
    samples: Path  # the untrained policy's answers
    rewards: Path
    prompts: Path
    lineage: list[Path]  # manifests of samples, rewards and prompts
    table: Path
    manifest: Path


def main(argv: list[str] | None = None) -> None:
    """Join answers and rewards by question, and write table and manifest."""
    arguments = parse(Arguments, argv)
    check_against_manifests(arguments.samples, arguments.rewards, arguments.prompts)
    questions = join_by_question(
        read_table(arguments.samples, ["task", "id", "scores", "label"]).to_pandas(),
        read_table(arguments.rewards, ["id", "rewards"]).to_pandas(),
        read_table(arguments.prompts, ["id", "group"]).to_pandas(),
        arguments.wording,
    )
    table = without_rl(questions, arguments.counts)
    table.insert(0, "run", arguments.name)
    write_text(arguments.table, table.to_csv(index=False))
    write_manifest(
        arguments.manifest,
        outputs={"table": arguments.table},
        inputs={"/".join(path.parts[-4:]): path for path in arguments.lineage},
        settings={"wording": arguments.wording, "counts": arguments.counts},
    )


if __name__ == "__main__":
    run(main)
