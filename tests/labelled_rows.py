"""A small labelled dataset in every file format, and every kind of bad row."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from elkflow.config.data import DatasetSettings
from elkflow.data.split_dataset import split_dataset

SPLIT = {"train": 20, "ppo": 20, "val": 10}

ROWS = 200


def questions(count=ROWS, start=0):
    numbers = range(start, start + count)
    return {
        "idx": list(numbers),
        "sentence": [f"Sentence number {n} says that {n * n}." for n in numbers],
        "question": [f"What does number {n} say?" for n in numbers],
        "label": [n % 2 for n in numbers],
    }


def section(**keys):
    given = {"split": SPLIT, "wordings": {"training": "qnli_training"}} | keys
    return DatasetSettings.model_validate({key: value for key, value in given.items() if value is not None})


def run(tmp_path, **keys):
    given = section(**keys)
    split_dataset(given.questions(), tmp_path / "out")
    return {name: pq.read_table(tmp_path / "out" / f"{name}.parquet") for name in ("train", "ppo", "val")}


def save(rows, path):
    """Write rows in the format that the path's ending names."""
    table = pa.table(rows)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix in (".jsonl", ".json"):
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    elif path.suffix in (".csv", ".tsv"):
        datasets.Dataset(table).to_csv(path, sep="\t" if path.suffix == ".tsv" else ",", index=False)
    elif path.suffix == ".arrow":
        kind = pa.ipc.new_file if path.name.endswith(".file.arrow") else pa.ipc.new_stream
        with pa.OSFile(str(path), "wb") as sink, kind(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        datasets.Dataset(table).save_to_disk(path)
    return path


def with_value(column, row, value):
    def change(rows):
        rows[column] = list(rows[column])
        rows[column][row] = value
        return rows

    return change


BAD_ROWS = {
    "null text": (with_value("sentence", 7, None), {}, "row 7: column 'sentence' is empty"),
    "blank text": (with_value("question", 3, "  \n"), {}, "row 3: column 'question' is empty"),
    "null label": (with_value("label", 5, None), {}, "row 5: column 'label' is empty"),
    "label beyond the mapping": (with_value("label", 9, 2), {}, "row 9: label 2 is not among 0 to 1"),
    "hidden test label": (with_value("label", 9, -1), {}, "row 9: label -1 is not among 0 to 1"),
    "unknown label name": (
        lambda rows: rows | {"label": ["maybe" if n == 4 else "yes" for n in range(ROWS)]},
        {"labels": ["no", "yes"]},
        "row 4: label 'maybe' is not among no, yes; if these are texts of the file, list them all",
    ),
    "labels that are fractions": (
        lambda rows: rows | {"label": [0.5] * ROWS},
        {},
        "column 'label' is double; labels are integers or names",
    ),
    "one label only": (lambda rows: rows | {"label": [1] * ROWS}, {}, "(0 / 200 by label)"),
    "duplicate ids": (with_value("idx", 11, 3), {"id": "idx"}, "rows 3 and 11: both have the idx 3"),
    "missing label column": (lambda rows: rows, {"label": "target"}, "column 'target' (label) is missing"),
    "missing group column": (lambda rows: rows, {"group": "title"}, "column 'title' (group[0]) is missing"),
    "missing pair column": (lambda rows: rows, {"pair": "couple"}, "column 'couple' (pair) is missing"),
    "missing id column": (lambda rows: rows, {"id": "guid"}, "column 'guid' (id) is missing"),
    "missing field": (
        lambda rows: rows,
        {"columns": {"sentence": "sentence", "question": "ask"}},
        "column 'ask' (columns.question) is missing",
    ),
    "a field called group": (lambda rows: rows | {"group": rows["idx"]}, {}, "a field cannot be called 'group'"),
    "too few rows": (lambda rows: rows, {"split": SPLIT | {"ppo": 171}}, "171 ppo rows are more than"),
    "too few groups": (
        lambda rows: rows | {"article": [n // 100 for n in range(ROWS)]},
        {"group": "article"},
        "200 usable rows in 2 groups",
    ),
    "everything the same text": (
        lambda rows: rows | {"sentence": ["Same!"] * ROWS, "question": ["same"] * ROWS, "idx": [1] * ROWS},
        {},
        "more than 1 usable rows",
    ),
    "no whole pairs": (lambda rows: rows | {"couple": rows["idx"]}, {"pair": "couple"}, "no usable rows are left"),
    "no rows": (lambda rows: {name: values[:0] for name, values in rows.items()}, {}, "no rows"),
}
