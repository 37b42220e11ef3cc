"""From a dataset's source to disjoint, balanced train, ppo and val files."""

import json
import logging
from collections.abc import Collection, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from elkflow.common.errors import UserError
from elkflow.common.files import BATCH_ROWS, atomic
from elkflow.config.data import SPLITS, QuestionSettings
from elkflow.data.assignment import RowKeys, assign_rows, connected_groups, scramble
from elkflow.data.reorder import reorder
from elkflow.data.row_hashes import hash_rows, is_text, normalise_text

if TYPE_CHECKING:
    from elkflow.data.sources import Rows

logger = logging.getLogger("elkflow")
RESERVED_COLUMNS = ("id", "group", "label")


def split_dataset(settings: QuestionSettings, folder: Path, read: Sequence[Collection[str]] = ()) -> dict[str, Any]:
    """Write train.parquet, ppo.parquet and val.parquet into `folder`; return facts for the manifest.

    Columns: id (unique), group, the source's fields, label (int64). Nothing is written unless all rows are valid.

    Args:
        read: the fields that each wording reads: rows that are the same in all of one wording's are near-duplicates,
            whatever else they hold. Empty: rows that are the same in all fields.

    Raises:
        UserError: a row is invalid (the message names file, row and column), or there are too few rows.
    """
    from elkflow.data.sources import hub_commit, open_rows

    sources = open_rows(settings)
    fields = {
        part: field_columns(settings, rows.column_names, _source_name(settings, part)) for part, rows in sources.items()
    }
    keys = {
        part: _row_keys(settings, rows, fields[part], _source_name(settings, part), read)
        for part, rows in sources.items()
    }
    assert settings.split is not None  # the settings ensure it
    assignment = assign_rows(keys["train"], keys.get("val"), settings.split, len(settings.labels))
    labels, groups = ({part: getattr(own, name) for part, own in keys.items()} for name in ("label", "group"))
    del keys  # frees the other hashes
    found = {part: {"rows": len(rows), "commit": hub_commit(rows)} for part, rows in sources.items()}
    facts: dict[str, Any] = {"sources": found, "removed": assignment.removed, "splits": {}}
    for name in SPLITS:
        part = "val" if name == "val" and "val" in sources else "train"
        rows = assignment.rows[name]
        path = folder / f"{name}.parquet"
        _write_split(settings, sources[part], rows, part, fields[part], labels[part], groups[part], path)
        counts = np.bincount(labels[part][rows], minlength=len(settings.labels))
        facts["splits"][name] = {
            "rows": len(rows),
            "groups": len(np.unique(groups[part][rows])),
            "labels": dict(zip(settings.labels, map(int, counts), strict=True)),
        }
        logger.info("%s: %s", name, facts["splits"][name])
    logger.info("left out: %s", assignment.removed)
    return facts


def _source_name(settings: QuestionSettings, part: str) -> str:
    """Name of a source in messages."""
    if settings.hub is not None:
        return f"{settings.hub.id} ({settings.hub.splits[part]})"  # type: ignore[index]
    if settings.facts is not None:
        return settings.facts.table or "facts"
    return settings.path[part] if isinstance(settings.path, dict) else str(settings.path)  # type: ignore[index]


def field_columns(settings: QuestionSettings, names: list[str], where: str) -> dict[str, str]:
    """Field name to source column, after checking that all columns named in the settings exist."""
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{where}: two columns are called {twice[0]!r}")
    used = {"label": settings.label, "id": settings.id, "pair": settings.pair}
    used |= {f"group[{n}]": column for n, column in enumerate(group_columns(settings))}
    used |= {f"columns.{name}": column for name, column in (settings.columns or {}).items()}
    for key, column in used.items():
        if column is not None and column not in names:
            raise UserError(f"{where}: column {column!r} ({key}) is missing; it has {', '.join(names)}")
    if settings.columns is not None:
        fields = dict(settings.columns)
    else:
        taken = {settings.label: "label", settings.id: "id"}
        fields = {name: name for name in names if name not in taken}
    for name in RESERVED_COLUMNS:
        if name in fields:
            raise UserError(f"{where}: a field cannot be called {name!r}; give it another name with `columns`")
    return fields


def group_columns(settings: QuestionSettings) -> list[str]:
    """The source columns whose equal values never end up in two splits."""
    return [settings.group] if isinstance(settings.group, str) else list(settings.group or [])


def _row_keys(
    settings: QuestionSettings, rows: "Rows", fields: dict[str, str], where: str, read: Sequence[Collection[str]]
) -> RowKeys:
    """Check every row and compute its keys, with one batch of text in memory at a time.

    Raises:
        UserError: a value that a wording reads is missing or empty, a label is unknown, or an id appears twice.
    """
    from elkflow.data.sources import read_batches

    groups = group_columns(settings)
    ties = [*groups, *([settings.pair] if settings.pair else [])]
    special = [*ties, *([settings.id] if settings.id else [])]
    columns = list(dict.fromkeys([settings.label, *special, *fields.values()]))
    ignored = {*special, *getattr(rows, "numbers", ())}  # in which two rows of the same text may differ
    labels = np.empty(len(rows), np.min_scalar_type(len(settings.labels)))
    seen = [[fields[name] for name in sorted(wording) if name in fields] for wording in read]
    seen = [columns for columns in seen if columns] or [list(fields.values())]
    read_columns = {settings.label, *special, *chain.from_iterable(seen)}
    content, texts = np.empty(len(rows), np.uint64), [np.empty(len(rows), np.uint64) for _ in seen]
    hashes = {name: np.empty(len(rows), np.uint64) for name in special}
    start = 0
    for batch in read_batches(rows, columns):
        for name in columns:
            if name in read_columns:
                refuse_missing_values(batch[name], name, where, start)
        here = slice(start, start + len(batch))
        labels[here] = label_codes(batch[settings.label], settings.labels, settings.label, where, start)
        content[here] = hash_rows([batch[name] for name in fields.values()]) ^ scramble(labels[here], 0)
        for text, names in zip(texts, seen, strict=True):
            worded = [name for name in names if is_text(batch[name].type) and name not in ignored]
            text[here] = hash_rows([normalise_text(batch[name]) for name in worded or names])
        for name, found in hashes.items():
            found[here] = hash_rows([batch[name]])
        start += len(batch)
    if settings.id:
        _refuse_duplicates(hashes[settings.id], rows, settings.id, where)
    text = connected_groups(*texts)
    # Rows without a group are grouped by text, so that at least near-duplicates stay together.
    tied = [hashes[name] for name in ties] if groups else [text, *(hashes[name] for name in ties)]
    return RowKeys(labels, content, connected_groups(*tied), text, hashes.get(settings.pair) if settings.pair else None)


def label_codes(column: pa.ChunkedArray, names: list[str], key: str, where: str, start: int = 0) -> np.ndarray:
    """[N] int64 labels from numbers, booleans or names.

    Raises:
        UserError: a value is not a label; the message names its row (counted from 0, plus `start`).
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if is_text(kind):
        codes = pc.index_in(column, pa.array(names, kind)).to_numpy(zero_copy_only=False)
        bad = np.isnan(codes.astype(float))
    elif pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        codes = column.cast(pa.int64()).to_numpy()
        bad = (codes < 0) | (codes >= len(names))
    else:
        raise UserError(f"{where}: column {key!r} is {kind}; labels are integers or names")
    if bad.any():
        row = int(bad.argmax())
        value = column[row].as_py()
        if isinstance(value, str):
            quoted = json.dumps(value[:60], ensure_ascii=False)
            cure = f"; if these are texts of the file, list them all, as in `labels: [{quoted}, ...]`"
            raise UserError(f"{where}, row {start + row}: label {value!r:.60} is not among {', '.join(names)}{cure}")
        raise UserError(f"{where}, row {start + row}: label {value!r} is not among 0 to {len(names) - 1}")
    return codes.astype(np.int64)


def refuse_missing_values(column: pa.ChunkedArray, name: str, where: str, start: int) -> None:
    """Raise a UserError at a missing value, blank text, or bytes that are not UTF-8 (which Arrow reads as text)."""
    bad = pc.is_null(column, nan_is_null=True)
    if is_text(column.type):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            row = next(n for n, value in enumerate(column.cast(pa.binary())) if not _is_utf8(value.as_py() or b""))
            raise UserError(f"{where}, row {start + row}: column {name!r} is not UTF-8 text") from None
        blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(column)), 0)
        bad = pc.or_(bad, pc.fill_null(blank, True))
    if pc.any(bad).as_py():
        row = pc.index(bad, True).as_py()
        raise UserError(f"{where}, row {start + row}: column {name!r} is empty")


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _refuse_duplicates(hashes: np.ndarray, rows: "Rows", name: str, where: str) -> None:
    from elkflow.data.sources import read_batches

    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    same = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(same):
        first, second = sorted((int(order[same[0]]), int(order[same[0] + 1])))
        values = chain.from_iterable(table[name] for table in read_batches(rows, [name]))
        value = next(islice(values, first, None)).as_py()
        raise UserError(f"{where}, rows {first} and {second}: both have the {name} {value!r}")


def _write_split(
    settings: QuestionSettings,
    rows: "Rows",
    numbers: np.ndarray,
    part: str,
    fields: dict[str, str],
    labels: np.ndarray,
    groups: np.ndarray,
    path: Path,
) -> None:
    """Stream the rows with the given numbers into a parquet file.

    Args:
        labels, groups: those of all rows of the source.
    """
    from elkflow.data.sources import read_batches

    named = group_columns(settings)
    special = [settings.label, *named, *([settings.id] if settings.id else [])]
    columns = list(dict.fromkeys([*special, *fields.values()]))
    with atomic(path) as temporary:
        writer, start = None, 0
        for batch in reorder(read_batches(rows, columns), numbers, path.parent):
            here = numbers[start : start + len(batch)]
            ids = batch[settings.id].cast(pa.string()) if settings.id else pa.array([f"{part}-{row}" for row in here])
            if len(named) == 1:
                group = batch[named[0]].cast(pa.string())
            else:
                group = pa.array([f"{value:016x}" for value in groups[here]]) if named else ids
            table = pa.table(
                {"id": ids, "group": group}
                | {name: batch[column] for name, column in fields.items()}
                | {"label": pa.array(labels[here], pa.int64())}
            )
            writer = writer or pq.ParquetWriter(temporary, table.schema)
            writer.write_table(table, row_group_size=BATCH_ROWS)
            start += len(batch)
        assert writer is not None  # no split is empty
        writer.close()
