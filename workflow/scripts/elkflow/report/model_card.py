"""Model cards: what a tuned model is, how it was made, and its limits."""

import json
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader

from elkflow.common.files import read_json
from elkflow.common.paths import REPORT
from elkflow.report import formatting, table_rows
from elkflow.summary.diagnosis import OUTCOMES


def model_card(training: dict[str, Any], verdict: dict[str, Any], results: Path, licence: str | None = None) -> str:
    """The card of one run and seed as Markdown with the hub's front matter.

    Args:
        training: the run and seed's row of the verdict's `trainings`.
        results: folder with the manifests of the run, its model and its dataset.
        licence: of the base model, as the hub writes it; `other` if unknown.
    """
    run, seed = training["run"], training["seed"]
    manifest = read_json(results / "runs" / run / f"seed{seed}" / "manifest.json")
    model = read_json(results / "models" / training["policy"] / "manifest.json")
    data = read_json(results / "data" / training["dataset"] / "manifest.json")
    probe = next(probe for probe in verdict["probes"] if probe["probe"] == training["probe"])
    rows = table_rows.rows_of(verdict["evaluations"], training)
    shown = [{k: v for k, v in row.items() if k not in ("run", "seed")} for row in table_rows.comparison_rows(rows)]
    hashes = [
        {"file": f"{name} ({where})", "sha256": f"`{entry['sha256']}`"}
        for where, content in (("run", manifest), ("data", data))
        for name, entry in content["outputs"].items()
    ]
    environment = Environment(loader=FileSystemLoader(REPORT), keep_trailing_newline=True)
    return environment.get_template("card.md").render(
        front_matter=yaml.safe_dump(front_matter(training, rows, model, licence), sort_keys=False, allow_unicode=True),
        training=training,
        results=formatting.markdown(shown)
        + (f"\n{formatting.FOOTNOTE}\n" if any(formatting.fixed(row) for row in rows) else ""),
        outcome=OUTCOMES.get(training["outcome"]),
        agreement=training["agreement"].get(training["wording"]),
        probe=probe,
        baselines=formatting.markdown(table_rows.probe_rows([probe])),
        settings=json.dumps(manifest.get("settings"), indent=1),
        source=describe_source(training["dataset"], data.get("settings") or {}),
        splits=formatting.markdown(
            [{"part": name} | _cells(facts) for name, facts in data["facts"].get("splits", {}).items()]
        ),
        commit=manifest["code"]["commit"],
        hashes=formatting.markdown(hashes),
        percent=lambda value: f"{100 * value:.1f} %",
    )


def front_matter(
    training: dict[str, Any], rows: list[dict[str, Any]], model: dict[str, Any], licence: str | None
) -> dict[str, Any]:
    """Metadata in the hub's format; the licence is the base model's."""
    given = model.get("settings") or {}
    base = (given.get("hub") or {}).get("id") or (given.get("wheel") or {}).get("name") or training["policy"]
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"type": training["dataset"], "name": f"{training['dataset']} ({row['task']})"},
            "metrics": [{"type": row["metric"], "value": round(row["tuned"], 4)}],
        }
        for row in rows
    ]
    return {
        "license": licence or "other",
        "base_model": base,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["truth-probe", "reinforcement-learning", "elkflow"],
        "model-index": [{"name": f"{training['run']}-seed{training['seed']}", "results": results}],
    }


def _cells(facts: dict[str, Any]) -> dict[str, str]:
    """Counts as cells: `{"labels": {"No": 3, "Yes": 4}}` becomes `No: 3, Yes: 4`."""
    return {
        key: ", ".join(f"{name}: {count}" for name, count in value.items()) if isinstance(value, dict) else str(value)
        for key, value in facts.items()
    }


def describe_source(name: str, settings: dict[str, Any]) -> str:
    """Where a dataset comes from, and its licence if the config states it."""
    names = {"facts": "questions about countries, built in"}
    kinds = [kind for kind in ("facts", "hub", "path", "mixture") if settings.get(kind) is not None]
    shown = [names.get(kind, f"{kind}: {json.dumps(settings[kind])}") for kind in kinds]
    licence = [f"licence {settings['licence']}"] if settings.get("licence") else []
    details = ", ".join(shown + licence)
    return f"Dataset `{name}`" + (f" ({details})" if details else "")
