"""Every number of the summary, computed again from the answers, steps and probe scores it stands on."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from elkflow.common.errors import UserError
from elkflow.common.files import read_json, read_table
from elkflow.common.metrics import auroc, mean
from elkflow.summary.comparison import base_folder, influence, read_suite, tuned_folder
from elkflow.summary.plan import Plan
from elkflow.summary.verdict import flat_probes, gather

CLOSE = 1e-9


def recompute(results: Path) -> int:
    """Compare verdict.json, comparison.csv and probes.csv with what the files in `results` give; count the numbers.

    Raises:
        UserError: listing every number that comes out differently.
    """
    summary = results / "summary"
    plan = Plan.model_validate(read_json(summary / "manifest.json")["settings"])
    verdict = gather(plan, results)
    told = read_json(summary / "verdict.json")
    wrong = [*_different("verdict.json", told, verdict)]
    for name, table in (
        ("comparison.csv", pd.DataFrame(verdict["evaluations"])),
        ("probes.csv", flat_probes(verdict["probes"])),
    ):
        wrong += _different(name, _records(pd.read_csv(summary / name)), _records(table))
    wrong += [*_answers(plan, results), *_probe_scores(plan, results)]
    if wrong:
        raise UserError("numbers of the summary that its files do not give:\n  " + "\n  ".join(wrong))
    return _count(told)


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return table.astype(object).where(table.notna() & (table != ""), None).to_dict("records")  # type: ignore[return-value]


def _different(place: str, told: Any, found: Any) -> Iterator[str]:
    """Places where two JSON values differ, numbers by more than rounding."""
    if isinstance(told, dict) and isinstance(found, dict):
        found = {str(key): value for key, value in found.items()}
        for key in sorted(set(told) | set(found)):
            yield from _different(f"{place}: {key}", told.get(key), found.get(key))
    elif isinstance(told, list) and isinstance(found, list) and len(told) == len(found):
        for index, (one, other) in enumerate(zip(told, found, strict=True)):
            yield from _different(f"{place}[{index}]", one, other)
    elif isinstance(told, int | float) and isinstance(found, int | float):
        if not math.isclose(told, found, rel_tol=CLOSE, abs_tol=CLOSE):
            yield f"{place} is {told}, its files give {found}"
    elif told != found:
        yield f"{place} is {told!r}, its files give {found!r}"


def _answers(plan: Plan, results: Path) -> Iterator[str]:
    """Suites whose results.json is not the mean of their samples."""
    folders = {
        folder(results, training, suite)
        for training in plan.trainings()
        for suite in plan.suites
        for folder in (base_folder, tuned_folder)
    }
    for folder in sorted(folders):
        found, samples = read_suite(folder)
        for task, facts in found.items():
            value = float(influence(samples[samples["task"] == task]).mean())
            if not math.isclose(value, facts["value"], rel_tol=1e-6, abs_tol=1e-9):
                yield f"{folder / 'results.json'}: {task} is {facts['value']}, its samples give {value}"


def _probe_scores(plan: Plan, results: Path) -> Iterator[str]:
    """Probes whose AUROC and accuracy are not those of their scores of the val rows."""
    for name in plan.probes:
        folder = results / "probes" / name
        if not (folder / "scores.parquet").is_file():
            continue
        facts = read_json(folder / "probe.json")
        if facts.get("ensembling", "full") != "full" and len(facts.get("wordings", [])) > 1:
            continue  # counted once a wording, which the scores (one a question) do not hold
        scores = read_table(folder / "scores.parquet", ["log_odds", "label"]).to_pandas()
        odds, labels = scores["log_odds"].to_numpy(), scores["label"].to_numpy()
        calibrated = facts.get("calibration")
        if calibrated:
            odds = (odds - calibrated["offset"]) / calibrated["slope"]
        for metric, value in (("auroc", auroc(odds, labels)), ("accuracy", mean((odds > 0) == (labels == 1)))):
            told = facts["metrics"][metric]
            if not math.isclose(float(value), told, rel_tol=1e-6, abs_tol=1e-6):
                yield f"{folder / 'probe.json'}: {metric} is {told}, its scores give {value}"


def _count(content: Any) -> int:
    """How many numbers a JSON value holds."""
    if isinstance(content, dict | list):
        return sum(_count(part) for part in (content.values() if isinstance(content, dict) else content))
    return int(isinstance(content, int | float) and not isinstance(content, bool))
