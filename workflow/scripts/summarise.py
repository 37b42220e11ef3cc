"""Compare base and tuned models and write the summary: verdict, tables, charts, pages and model cards."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from elkflow.common.cli import parse, run
from elkflow.common.errors import UserError, validation_message
from elkflow.common.files import read_json
from elkflow.report.summarise import summarise
from elkflow.summary.plan import Plan


@dataclass(frozen=True)
class Arguments:
    """Command line of this script."""

    plan: Path  # JSON
    results: Path  # folder with the stages' results
    output: Path  # folder of the summary


def main(argv: list[str] | None = None) -> None:
    """Read the plan and follow it."""
    arguments = parse(Arguments, argv)
    try:
        plan = Plan.model_validate(read_json(arguments.plan))
    except ValidationError as error:
        raise UserError(f"{arguments.plan}: {validation_message(error, Plan)}") from None
    summarise(plan, arguments.results, arguments.output)


if __name__ == "__main__":
    run(main)
