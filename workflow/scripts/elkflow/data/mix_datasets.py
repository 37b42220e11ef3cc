"""Mixtures: several datasets joined split by split, with a column for the dataset of each row."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from elkflow.common.files import BATCH_ROWS, atomic, parquet_errors, read_json, stream_table
from elkflow.config.data import SPLITS
from elkflow.data.row_hashes import hash_rows

PREFIXED = ("id", "group", "question_id")
"""Columns whose values are unique only within a member; in a mixture they are prefixed with its name."""


def mix_datasets(members: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Join the members' split files, of data or of prompts, into `folder`; return facts for the manifest.

    All rows of all members are kept, in each member's own order; members are interleaved in proportion to their sizes,
    so that the first rows are a fair sample of all. Rows gain the column `original_dataset`, prompts also
    `template_name`. A column that a member lacks is null in its rows; one whose type differs between members becomes
    text. Only the order of rows is held in memory, about 20 bytes each.

    Args:
        members: name of each dataset to the folder of its split files and manifest.json.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    manifests = {name: read_json(path / "manifest.json")["facts"] for name, path in members.items()}
    added = {name: {"original_dataset": name} for name in members}
    for name, facts in manifests.items():
        if "template" in facts:
            added[name]["template_name"] = facts["template"]
    return {"splits": {split: _mix_split(split, members, added, folder / f"{split}.parquet") for split in SPLITS}}


def _mix_split(
    split: str, members: Mapping[str, Path], added: Mapping[str, dict[str, str]], target: Path
) -> dict[str, Any]:
    paths = [folder / f"{split}.parquet" for folder in members.values()]
    heads = [_parquet_metadata(path) for path in paths]
    schema = _mixed_schema([head.schema.to_arrow_schema() for head in heads], list(next(iter(added.values()))))
    order = interleave([head.num_rows for head in heads])
    chunks = [order[start : start + BATCH_ROWS] for start in range(0, len(order), BATCH_ROWS)]
    wanted = np.array([np.bincount(chunk, minlength=len(paths)) for chunk in chunks])
    readers = [
        _consecutive_tables(path, schema, wanted[:, place].tolist(), name, added[name])
        for place, (name, path) in enumerate(zip(members, paths, strict=True))
    ]
    groups: list[np.ndarray] = []
    labels: Counter[int] = Counter()
    with atomic(target) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for chunk, *pieces in zip(chunks, *readers, strict=True):
            # The pieces are in order of members; this puts each row in its place.
            table = pa.concat_tables(pieces).take(np.argsort(np.argsort(chunk, kind="stable"), kind="stable"))
            writer.write_table(table)
            groups.append(np.unique(hash_rows([table["group"]])))
            labels.update(dict(enumerate(np.bincount(table["label"].to_numpy()).tolist())))
    return {
        "rows": len(order),
        "groups": len(np.unique(np.concatenate(groups))),
        "labels": {str(label): labels[label] for label in range(max(labels) + 1)},
        "datasets": {name: head.num_rows for name, head in zip(members, heads, strict=True)},
    }


def interleave(sizes: Sequence[int]) -> np.ndarray:
    """[N] member of each row of the mixture: row i of n is at position (i + ½) / n, ties in the given order."""
    places = np.concatenate([(np.arange(size) + 0.5) / size for size in sizes])
    return np.repeat(np.arange(len(sizes), dtype=np.int16), sizes)[np.argsort(places, kind="stable")]


def _parquet_metadata(path: Path) -> pq.FileMetaData:
    with parquet_errors(path):
        return pq.read_metadata(path)


def _mixed_schema(members: Sequence[pa.Schema], added: Sequence[str]) -> pa.Schema:
    """All columns of the members in order of appearance, then the added ones."""
    types: dict[str, pa.DataType] = {}
    for schema in members:
        for field in schema:
            same = types.setdefault(field.name, field.type) == field.type
            types[field.name] = field.type if same else pa.string()
    return pa.schema([*types.items(), *((name, pa.string()) for name in added)])


def _consecutive_tables(
    path: Path, schema: pa.Schema, sizes: Sequence[int], name: str, added: Mapping[str, str]
) -> Iterator[pa.Table]:
    """The rows of a file in consecutive tables of the given sizes, as rows of the mixture."""
    tables = stream_table(path)
    held = pq.read_schema(path).empty_table()
    for size in sizes:
        while len(held) < size:
            held = pa.concat_tables([held, next(tables)])
        yield _as_mixed(held.slice(0, size), schema, name, added)
        held = held.slice(size)


def _as_mixed(table: pa.Table, schema: pa.Schema, name: str, added: Mapping[str, str]) -> pa.Table:
    columns = []
    for field in schema:
        if field.name in added:
            column = pa.array([added[field.name]] * len(table), field.type)
        elif field.name not in table.column_names:
            column = pa.nulls(len(table), field.type)
        elif field.name in PREFIXED:
            column = pa.array([f"{name}/{value}" for value in table[field.name].to_pylist()], field.type)
        elif table[field.name].type != field.type and pa.types.is_nested(table[field.name].type):
            column = pa.array([repr(value) for value in table[field.name].to_pylist()], field.type)
        else:
            column = table[field.name].cast(field.type)
        columns.append(column)
    return pa.table(columns, schema=schema)
