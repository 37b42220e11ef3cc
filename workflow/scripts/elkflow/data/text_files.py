"""Local CSV and JSON files, streamed as they stand: no value but a label changes its type on the way to a prompt.

In a CSV file everything is text: `00501`, `3.10`, `TRUE` and `NA` stay what they are. In JSON lines numbers are numbers
and text is text, also where it looks like a date; a column whose values have several types is text, as in the file.
"""

import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv
from pyarrow import json as arrow_json

SEPARATORS = {".csv": ",", ".tsv": "\t"}
ENDINGS = (*SEPARATORS, ".jsonl", ".ndjson", ".json")
JSON_BLOCK = 2**24
"""Bytes of JSON lines parsed at a time."""
NUMBERS = (pa.int64(), pa.bool_(), pa.float64())
"""What a column of text may stand for, the first that all of its values fit."""


def ending(path: Path) -> str:
    """What a file's name says of its format: `.csv` for `ROWS.CSV.gz`."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


@dataclass(frozen=True)
class TextRows:
    """Rows of a CSV or JSON file, with the interface of a `Dataset`. The file is parsed anew each time it is read."""

    path: Path
    schema: pa.Schema
    """Of every column as `read` gives it."""
    count: int
    numbers: frozenset[str] = frozenset()
    """Columns of text whose values could all be read as numbers or booleans."""
    mixed: frozenset[str] = frozenset()
    """JSON columns of several types."""

    def __len__(self) -> int:
        return self.count

    @property
    def column_names(self) -> list[str]:
        return self.schema.names

    def read(self, columns: list[str]) -> Iterator[pa.Table]:
        """Some columns, in the file's order.

        Raises:
            ArrowException, ValueError: the file is not in its format.
        """
        schema = pa.schema([self.schema.field(name) for name in columns])
        if ending(self.path) in SEPARATORS:
            for table in _csv_tables(self.path):
                yield table.select(columns).cast(schema)
            return
        for block in _json_blocks(self.path):
            yield _json_table(block, self.schema, self.mixed).select(columns)


def open_text(path: Path, label: str) -> TextRows:
    """A text file's rows, after one pass over it that finds the types.

    Args:
        label: the one column of a CSV file that becomes numbers or booleans, if all its values are.

    Raises:
        ArrowException, ValueError: the file is not in the format that its name says.
    """
    return _open_csv(path, label) if ending(path) in SEPARATORS else _open_json(path)


def _open_csv(path: Path, label: str) -> TextRows:
    kinds: dict[str, list[pa.DataType]] | None = None
    names: list[str] = []
    count = 0
    for table in _csv_tables(path):
        names, count = table.column_names, count + len(table)
        kinds = kinds or {name: list(NUMBERS) for name in names}
        for name, column in zip(names, table.columns, strict=True):
            kinds[name] = [kind for kind in kinds[name] if _fits(column, kind)]
    kinds = kinds or {}
    types = [kinds[name][0] if name == label and kinds[name] else pa.string() for name in names]
    schema = pa.schema(list(zip(names, types, strict=True)))
    return TextRows(path, schema, count, frozenset(name for name in names if kinds[name]))


def _fits(column: pa.ChunkedArray, kind: pa.DataType) -> bool:
    try:
        column.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def _csv_tables(path: Path) -> Iterator[pa.Table]:
    layout = csv.ParseOptions(delimiter=SEPARATORS[ending(path)], newlines_in_values=True)
    with csv.open_csv(str(path), parse_options=layout) as reader:
        text = csv.ConvertOptions(column_types=dict.fromkeys(reader.schema.names, pa.string()))
    with csv.open_csv(str(path), parse_options=layout, convert_options=text) as reader:
        for batch in reader:
            yield pa.Table.from_batches([batch])


def _open_json(path: Path) -> TextRows:
    types: dict[str, pa.DataType] = {}
    mixed: set[str] = set()
    count = 0
    for block in _json_blocks(path):
        found, rows = _block_types(block)
        count += rows
        for name, kind in found.items():
            try:
                types[name] = _common_type(types.get(name, pa.null()), kind) if kind else pa.string()
            except pa.ArrowException:
                kind = None
            if kind is None:
                mixed.add(name)
    types |= dict.fromkeys(mixed, pa.string())
    return TextRows(path, pa.schema(list(types.items())), count, mixed=frozenset(mixed))


def _json_blocks(path: Path) -> Iterator[bytes]:
    """Whole JSON lines; a file that is one array becomes lines."""
    packed = path.suffix.lower() == ".gz"
    with gzip.open(path) if packed else path.open("rb") as file:
        if first := file.read(1):
            rest = file.readlines(JSON_BLOCK)
            if first == b"[" and ending(path) == ".json":
                rows = json.loads(first + b"".join(rest) + file.read())
                yield b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
                return
            while rest or first:
                block = first + b"".join(rest)
                block.decode()  # raises if it is not UTF-8: Arrow accepts any bytes as text
                yield block
                first, rest = b"", file.readlines(JSON_BLOCK)


def _block_types(block: bytes) -> tuple[dict[str, pa.DataType | None], int]:
    """Type of every column, None where it has several, and the number of rows."""
    try:
        table = arrow_json.read_json(pa.BufferReader(block), _whole(block))
        return {field.name: _without_dates(field.type) for field in table.schema}, len(table)
    except pa.ArrowInvalid as error:
        if "changed from" not in str(error):
            raise
    rows = _parse(block)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _type_of(row.get(name) for row in rows) for name in names}, len(rows)


def _whole(block: bytes) -> arrow_json.ReadOptions:
    return arrow_json.ReadOptions(block_size=len(block) + 1)  # a line may be longer than Arrow's own blocks


def _parse(block: bytes) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in block.splitlines() if line.strip()]
    if other := next((row for row in rows if not isinstance(row, dict)), None):
        raise ValueError(f"{other!r:.60} is not an object")
    return rows


def _type_of(values: Iterable[Any]) -> pa.DataType | None:
    try:
        return pa.array(list(values)).type
    except pa.ArrowException:
        return None


def _common_type(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    """The type of both: integers among fractions are fractions, and what is missing may be anything."""
    schemas = [pa.schema([("x", kind)]) for kind in (first, second)]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def _without_dates(kind: pa.DataType) -> pa.DataType:
    """The type with text for what Arrow takes for a date."""
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_without_dates(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _without_dates(field.type)) for field in kind])
    return kind


def _json_table(block: bytes, schema: pa.Schema, mixed: frozenset[str]) -> pa.Table:
    """The rows of some JSON lines; a column that a line lacks is null there."""
    if not mixed:
        options = arrow_json.ParseOptions(explicit_schema=schema)
        return arrow_json.read_json(pa.BufferReader(block), _whole(block), options).select(schema.names)
    rows = _parse(block)
    columns = {name: [row.get(name) for row in rows] for name in schema.names}
    for name in mixed:
        columns[name] = [value if isinstance(value, str | None) else json.dumps(value) for value in columns[name]]
    return pa.table(columns, schema=schema)
