"""Every number of the summary, computed again from answers, training steps and probe scores."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from elkflow.common.errors import UserError
from elkflow.common.files import read_json, read_table
from elkflow.common.metrics import auroc, mean
from elkflow.summary.comparison import influence
from elkflow.summary.plan import Plan
from elkflow.summary.results import base_folder, probe_table, read_suite, tuned_folder
from elkflow.summary.verdict import build_verdict

CLOSE = 1e-9


def recompute_summary(results: Path) -> int:
    """Compare verdict.json, comparison.csv and probes.csv with what the files in `results` give; count the numbers.

    Raises:
        UserError: lists every number that differs.
    """
    summary = results / "summary"
    plan = Plan.model_validate(read_json(summary / "manifest.json")["settings"])
    verdict = build_verdict(plan, results)
    stated = read_json(summary / "verdict.json")
    wrong = [*_differences("verdict.json", stated, verdict)]
    for name, table in (
        ("comparison.csv", pd.DataFrame(verdict["evaluations"])),
        ("probes.csv", probe_table(verdict["probes"])),
    ):
        wrong += _differences(name, _records(pd.read_csv(summary / name)), _records(table))
    wrong += [*_wrong_results(plan, results), *_wrong_probe_metrics(plan, results)]
    if wrong:
        raise UserError("numbers of the summary that do not follow from its files:\n  " + "\n  ".join(wrong))
    return _count_numbers(stated)


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries, with None for missing and empty cells."""
    return table.astype(object).where(table.notna() & (table != ""), None).to_dict("records")  # type: ignore[return-value]


def _differences(place: str, stated: Any, found: Any) -> Iterator[str]:
    """Where two JSON values differ, numbers by more than rounding."""
    if isinstance(stated, dict) and isinstance(found, dict):
        found = {str(key): value for key, value in found.items()}
        for key in sorted(set(stated) | set(found)):
            yield from _differences(f"{place}: {key}", stated.get(key), found.get(key))
    elif isinstance(stated, list) and isinstance(found, list) and len(stated) == len(found):
        for index, (one, other) in enumerate(zip(stated, found, strict=True)):
            yield from _differences(f"{place}[{index}]", one, other)
    elif isinstance(stated, int | float) and isinstance(found, int | float):
        if not math.isclose(stated, found, rel_tol=CLOSE, abs_tol=CLOSE):
            yield f"{place} is {stated}, its files give {found}"
    elif stated != found:
        yield f"{place} is {stated!r}, its files give {found!r}"


def _wrong_results(plan: Plan, results: Path) -> Iterator[str]:
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


def _wrong_probe_metrics(plan: Plan, results: Path) -> Iterator[str]:
    """Probes whose AUROC or accuracy is not that of their scores on the val rows."""
    for name in plan.probes:
        folder = results / "probes" / name
        if not (folder / "scores.parquet").is_file():
            continue
        facts = read_json(folder / "probe.json")
        if facts.get("ensembling", "full") != "full" and len(facts.get("wordings", [])) > 1:
            continue  # metrics count a row per wording, scores have a row per question
        scores = read_table(folder / "scores.parquet", ["log_odds", "label"]).to_pandas()
        odds, labels = scores["log_odds"].to_numpy(), scores["label"].to_numpy()
        calibrated = facts.get("calibration")
        if calibrated:
            odds = (odds - calibrated["offset"]) / calibrated["slope"]
        for metric, value in (("auroc", auroc(odds, labels)), ("accuracy", mean((odds > 0) == (labels == 1)))):
            stated = facts["metrics"][metric]
            if not math.isclose(float(value), stated, rel_tol=1e-6, abs_tol=1e-6):
                yield f"{folder / 'probe.json'}: {metric} is {stated}, its scores give {value}"


def _count_numbers(content: Any) -> int:
    """How many numbers a JSON value holds."""
    if isinstance(content, dict | list):
        return sum(_count_numbers(part) for part in (content.values() if isinstance(content, dict) else content))
    return int(isinstance(content, int | float) and not isinstance(content, bool))
