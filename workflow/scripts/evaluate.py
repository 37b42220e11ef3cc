"""Put every suite to one model with lm-evaluation-harness; the model is loaded once."""

import logging
from dataclasses import dataclass
from pathlib import Path

from elkflow.cli import parse, run, timed
from elkflow.evaluation import evaluate_suite, load_subject
from elkflow.files import write_json, write_table
from elkflow.lineage import write_manifest
from elkflow.settings.evaluation import EvaluationSettings
from elkflow.settings.model import ModelSettings


@dataclass(frozen=True)
class Arguments:
    """Command line of this script."""

    settings: EvaluationSettings
    model_settings: ModelSettings
    model: Path  # checkpoint folder
    lineage: list[Path]  # manifests of the model (and of the adapter)
    prompts: list[Path]  # …/{wording}/val.parquet
    output: Path  # folder; each suite gets a folder in it
    adapter: Path | None = None


def main(argv: list[str] | None = None) -> None:
    arguments = parse(Arguments, argv)
    prompts = {file.parent.name: file for file in arguments.prompts}
    with timed("loading the model"):
        model = load_subject(arguments.model, arguments.model_settings, arguments.settings, arguments.adapter)
    for name, suite in arguments.settings.suites.items():
        with timed(f"suite {name}"):
            outcome = evaluate_suite(model, suite, prompts)
        if outcome is None:
            continue  # the first process writes
        results, samples = outcome
        folder = arguments.output / name
        write_json(folder / "results.json", results)
        write_table(samples, folder / "samples.parquet")
        write_manifest(
            folder / "manifest.json",
            outputs={"results": folder / "results.json", "samples": folder / "samples.parquet"},
            inputs={file.parent.name if file.name == "manifest.json" else file.name: file for file in arguments.lineage}
            | {wording: prompts[wording] for wording in suite.wordings},
            settings=suite,
            device=model.device.type,
            dtype=str(model.model.dtype).removeprefix("torch."),
        )
    logging.getLogger(__name__).info("evaluated %s", arguments.adapter or arguments.model)


if __name__ == "__main__":
    run(main)
