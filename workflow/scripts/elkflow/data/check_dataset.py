"""Checks of a dataset's source and templates before anything runs, without a model."""

from pathlib import Path

import numpy as np

from elkflow.common.errors import UserError
from elkflow.config.data import SPLITS, DatasetSettings
from elkflow.data.assignment import RowKeys, assign_rows, connected_groups
from elkflow.data.facts import read_facts
from elkflow.data.row_hashes import hash_rows
from elkflow.data.split_dataset import field_columns, group_columns, label_codes, refuse_missing_values


def check_dataset(settings: DatasetSettings) -> None:
    """Check templates, and the columns, labels and sizes of local files.

    Takes a few milliseconds for the built-in questions and for hub datasets (only their templates are checked, without
    the network). Of local files the label, group and pair columns are read: about 0.1 s for a million rows of parquet
    or Arrow, 1 s for CSV or JSON lines. Text and duplicates are left to `split_dataset`, which may still find too few
    rows.

    Raises:
        UserError: the first problem, with its key, file or row.
    """
    from elkflow.prompts.templates import SEPARATOR, load_template

    needed: dict[str, set[str]] = {}
    for name, wording in settings.wordings.items():
        template = load_template(wording.template)
        source = load_template(wording.about) if wording.about else template
        needed[name] = set(source.fields)
        choices = [part.strip() for part in (source.answer_choices or "{").split(SEPARATOR)]
        if settings.answers and "{" not in choices[0] and sorted(choices) != sorted(settings.answers):
            raise UserError(f"wordings.{name}: its template answers {choices}, but `answers` are {settings.answers}")
        if wording.about and (unknown := template.fields - {"text", "question", "answer", "label"}):
            raise UserError(
                f"wordings.{name}: a template about an answer can use text, question, answer and label, not"
                f" {min(unknown)!r}"
            )
    if settings.facts is not None:
        topic, facts = read_facts(settings.facts.topic, settings.facts.table)
        fields = set(topic.schema.names) if settings.columns is None else set(settings.columns)
        sizes = {name: int(getattr(settings.split, name)) for name in SPLITS if getattr(settings.split, name) != "rest"}
        if sum(-(-size // topic.rows_per_subject) for size in sizes.values()) > len(facts):
            given = " + ".join(f"{size} {name}" for name, size in sizes.items())
            raise UserError(
                f"split: {given} rows are more than {len(facts)} {settings.facts.topic} give"
                f" ({topic.rows_per_subject} each)"
            )
    elif settings.path is not None:
        fields = _check_local_files(settings)
    else:
        return
    for name, wanted in needed.items():
        if missing := wanted - fields - {"label", "group", "id"}:
            has = ", ".join(sorted(fields))
            raise UserError(f"wordings.{name}: the template uses {min(missing)!r}, but the rows have {has}")


def _check_local_files(settings: DatasetSettings) -> set[str]:
    """Check columns, labels and sizes of local files; return the names of the fields."""
    from elkflow.data.sources import open_path, read_batches

    assert settings.split is not None and settings.path is not None
    paths = settings.path if isinstance(settings.path, dict) else {"train": settings.path}
    keys, fields = {}, set()
    for part, path in paths.items():
        rows = open_path(Path(path), settings.label)
        fields = set(field_columns(settings, rows.column_names, path))
        groups = group_columns(settings)
        labels: list[np.ndarray] = []
        hashes: dict[str, list[np.ndarray]] = {name: [] for name in [*groups, settings.pair] if name}
        start = 0
        for table in read_batches(rows, list(dict.fromkeys([settings.label, *hashes]))):
            refuse_missing_values(table[settings.label], settings.label, path, start)
            labels.append(label_codes(table[settings.label], settings.labels, settings.label, path, start))
            for name, each in hashes.items():
                each.append(hash_rows([table[name]]))
            start += len(table)
        whole = {name: np.concatenate(each) for name, each in hashes.items()}
        alone = np.arange(start, dtype=np.uint64)
        pair = whole[settings.pair] if settings.pair else None
        tied = [whole[name] for name in groups] or [alone]
        tied += [] if pair is None else [pair]
        keys[part] = RowKeys(np.concatenate(labels), alone, connected_groups(*tied), alone, pair)
    assign_rows(
        keys["train"], keys.get("val"), settings.split.model_copy(update={"duplicates": "keep"}), len(settings.labels)
    )
    return fields
