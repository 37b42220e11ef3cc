"""Evaluate a model on every suite with lm-evaluation-harness; the model is loaded once."""

from dataclasses import dataclass, field
from pathlib import Path

from elkflow.common.cli import parse, run, timed
from elkflow.common.files import write_json, write_table
from elkflow.common.manifests import check_against_manifests, write_manifest
from elkflow.config.evaluation import EvaluationSettings
from elkflow.config.model import ModelSettings
from elkflow.evaluation.evaluate_model import evaluate_suite, load_harness_model, suite_average


@dataclass(frozen=True)
class Arguments:
    """Command line of this script."""

    settings: EvaluationSettings
    model_settings: ModelSettings
    model: Path  # checkpoint folder
    lineage: list[Path]  # manifests of the model, the adapter if there is one, and the prompts
    prompts: list[Path]  # …/{wording}/val.parquet
    results: list[Path]  # …/{suite}/results.json; samples and manifest are written beside it
    answers: Path  # folder of the score cache
    questions: list[Path] = field(default_factory=list)  # at most one folder, of the hub tasks' questions
    adapter: list[Path] = field(default_factory=list)  # at most one, on top of the model


def main(argv: list[str] | None = None) -> None:
    """Write results.json, samples.parquet and manifest.json of every suite."""
    arguments = parse(Arguments, argv)
    prompts = {file.parent.name: file for file in arguments.prompts}
    adapter = next(iter(arguments.adapter), None)
    questions = next(iter(arguments.questions), None)
    check_against_manifests(arguments.model, *arguments.adapter, *arguments.prompts, *arguments.questions)
    with timed("loading the model"):
        model = load_harness_model(
            arguments.model,
            arguments.model_settings,
            arguments.settings,
            adapter=adapter,
            cache=arguments.answers,
        )
    for file in arguments.results:
        name, folder = file.parent.name, file.parent
        suite = arguments.settings.suites[name]
        with timed(f"suite {name}"):
            outcome = evaluate_suite(model, suite, prompts, questions)
        if outcome is None:
            continue  # the first process writes
        results, samples = outcome
        write_json(folder / "results.json", results)
        write_table(samples, folder / "samples.parquet")
        write_manifest(
            folder / "manifest.json",
            outputs={"results": folder / "results.json", "samples": folder / "samples.parquet"},
            inputs=dict(zip(("model", "adapter")[: 1 + len(arguments.adapter)], arguments.lineage, strict=False))
            | {f"prompts {wording}": prompts[wording] for wording in suite.wordings}
            | ({"questions": questions.with_suffix(".json")} if questions and suite.fetched() else {}),
            settings=suite,
            average=suite_average(results),
            device=model.device.type,
            dtype=str(model.model.dtype).removeprefix("torch."),
        )


if __name__ == "__main__":
    run(main)
