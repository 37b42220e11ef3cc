"""Atomic writing of artefacts, and reading them with errors that name the file."""

import glob
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from elkflow.common.errors import UserError

BATCH_ROWS = 10_000
"""Rows held in memory when a table is streamed."""


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path next to `path`; on success flush it to disk and rename it to `path`.

    Works for files and folders. If the body raises, nothing is left behind and an existing `path` is unchanged. A
    killed process leaves its temporary path, which the next writer of the same `path` removes. At any time `path` is
    complete or absent.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        _remove(leftover)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    replaced = path.with_name(f".{path.name}.{os.getpid()}.old.tmp")
    try:
        yield temporary
        _flush(temporary)
        if temporary.is_dir() and path.exists():  # a folder cannot be renamed over another: move the old one aside
            os.replace(path, replaced)
        os.replace(temporary, path)
        _flush_entry(path.parent)
    finally:
        _remove(temporary)
        _remove(replaced)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())


def _flush_entry(folder: Path) -> None:
    """Make the rename durable: without this, a power cut can undo it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` atomically as UTF-8."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, content: Any) -> None:
    """Write `content` atomically as indented JSON; NaN and infinity, which JSON lacks, raise a ValueError."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def number(value: float) -> float | None:
    """A number for JSON, which has no NaN or infinity: null stands for both."""
    return float(value) if math.isfinite(value) else None


def read_json(path: Path | str) -> Any:
    """Parse a JSON file.

    Raises:
        UserError: the file is missing or is not JSON; the message names it.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def write_table(table: Any, path: Path | str) -> None:
    """Write a pyarrow Table or a pandas DataFrame atomically as parquet."""
    if not isinstance(table, pa.Table):
        table = pa.Table.from_pandas(table, preserve_index=False)
    with atomic(path) as temporary:
        pq.write_table(table, temporary)


@contextmanager
def parquet_errors(path: Path | str) -> Iterator[None]:
    """Turn errors about a missing or damaged parquet file into a UserError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file ({error})") from None


def read_table(path: Path | str, columns: list[str] | None = None) -> pa.Table:
    """Read a parquet file as a pyarrow Table.

    Raises:
        UserError: the file is missing, damaged, or lacks one of `columns`; the message names it.
    """
    with parquet_errors(path):
        table = pq.read_table(path)
    _refuse_missing(path, table.column_names, columns)
    return table.select(columns) if columns else table


def stream_table(path: Path | str, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Read a parquet file as pyarrow Tables of at most `BATCH_ROWS` rows; about one of them is in memory at a time.

    Raises:
        UserError: as `read_table`.
    """
    # By default pyarrow reads whole columns ahead, and every thread keeps its own memory.
    with parquet_errors(path), pq.ParquetFile(path, buffer_size=2**16, pre_buffer=False) as file:
        _refuse_missing(path, file.schema_arrow.names, columns)
        batches = file.iter_batches(BATCH_ROWS, columns=columns, use_threads=False)
        yield from release_memory(pa.Table.from_batches([batch]) for batch in batches)


def release_memory(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same tables; memory of earlier ones is returned to the system, where Arrow's allocator would keep it."""
    for table in tables:
        yield table
        pa.default_memory_pool().release_unused()


def _refuse_missing(path: Path | str, names: list[str], columns: list[str] | None) -> None:
    if missing := [column for column in columns or [] if column not in names]:
        raise UserError(f"{path}: column {missing[0]!r} is missing; it has {', '.join(names)}")


def sha256(path: Path | str) -> str:
    """Hex digest of a file's content, or of the names and contents of a folder's files.

    Snakemake's timestamp file in the folders it tracks is ignored.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != ".snakemake_timestamp")
        lines = [f"{sha256(file)}  {file.relative_to(path).as_posix()}" for file in files]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
