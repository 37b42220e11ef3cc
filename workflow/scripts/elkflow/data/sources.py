"""Sources of rows: the built-in questions, local files and the hub, opened and read as a stream."""

import logging
import re
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from elkflow.common.errors import UserError, first_line
from elkflow.common.files import BATCH_ROWS, release_memory, stream_table
from elkflow.config.data import HubDataset, QuestionSettings
from elkflow.data.facts import generate_questions, read_facts
from elkflow.data.text_files import ENDINGS, TextRows, ending, open_text

if TYPE_CHECKING:
    from datasets import Dataset

Sizes = TypeVar("Sizes", bound=Sized)
logger = logging.getLogger("elkflow")
COMMIT_HASH = re.compile(r"[0-9a-f]{40}")
FORMATS = (".parquet", *ENDINGS, ".arrow")


@dataclass(frozen=True)
class ParquetRows:
    """Rows of a local parquet file, with the interface of a `Dataset`.

    Streamed from the file itself: `datasets` would convert it by decoding whole row groups, and most files have one.
    """

    path: Path

    def __len__(self) -> int:
        return pq.read_metadata(self.path).num_rows

    @property
    def column_names(self) -> list[str]:
        return pq.read_schema(self.path).names


Rows: TypeAlias = "Dataset | ParquetRows | TextRows"


def open_rows(settings: QuestionSettings) -> dict[str, Rows]:
    """The source's rows, under `train` and, if it has them, `val`.

    Files on the hub are converted once, to Arrow files in the cache of `datasets`.

    Raises:
        UserError: a file is missing, empty, truncated or not in the format of its suffix, or the hub is unreachable.
    """
    from datasets import Dataset

    if settings.facts is not None:
        given = settings.facts
        topic, facts = read_facts(given.topic, given.table)
        return {"train": Dataset(generate_questions(facts, topic, given.seed, given.label))}
    if settings.hub is not None:
        parts: dict[str, Rows] = {part: _open_hub(settings.hub, name) for part, name in settings.hub.splits.items()}
        if not COMMIT_HASH.fullmatch(settings.hub.revision) and (found := hub_commit(parts["train"])):
            logger.warning(
                "hub dataset %s: %r is not a commit and can move; to pin these rows, set `revision: %s`",
                settings.hub.id,
                settings.hub.revision,
                found,
            )
        return parts
    paths = settings.path if isinstance(settings.path, dict) else {"train": str(settings.path)}
    return {part: open_path(Path(path), settings.label) for part, path in paths.items()}


def open_path(path: Path, label: str) -> Rows:
    """The rows of a local file or `save_to_disk` folder, whose labels are in the column `label`.

    Raises:
        UserError: it is missing, empty, truncated or not in the format of its suffix.
    """
    import datasets

    _refuse_missing_or_empty(path)
    try:
        if path.is_dir():
            rows = datasets.load_from_disk(str(path))
            if isinstance(rows, datasets.DatasetDict):
                raise UserError(f"{path}: has several splits ({', '.join(rows)}); give the folder of one of them")
            return _refuse_no_rows(rows, path)
        if ending(path) in ENDINGS:
            return _refuse_no_rows(open_text(path, label), path)
        if path.suffix not in FORMATS:
            raise UserError(
                f"{path}: unknown format {path.suffix!r}; known are {', '.join(FORMATS)} and save_to_disk folders"
            )
        if path.suffix == ".parquet":
            pq.read_metadata(path)
            return _refuse_no_rows(ParquetRows(path), path)
        rows = datasets.load_dataset(
            "arrow", data_files={"train": str(path)}, split="train", writer_batch_size=BATCH_ROWS
        )
    except (datasets.exceptions.DatasetGenerationError, OSError, ValueError, pa.ArrowException) as error:
        _refuse_other_encodings(path)
        raise UserError(
            f"{path}: cannot be read as {path.suffix or 'a save_to_disk folder'} ({_root_cause(error)})"
        ) from None
    return _refuse_no_rows(rows, path)


def _open_hub(source: HubDataset, split: str) -> "Dataset":
    import datasets
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    shown = f"{source.id}{f' ({source.name})' if source.name else ''} at {source.revision}"
    try:
        rows = datasets.load_dataset(
            source.id, source.name, split=split, revision=source.revision, writer_batch_size=BATCH_ROWS
        )
    except HfHubHTTPError as error:
        raise UserError(f"hub dataset {shown}: {first_line(error)}") from None
    except (
        datasets.exceptions.DatasetNotFoundError,
        datasets.exceptions.DatasetGenerationError,
        LocalEntryNotFoundError,
        ConnectionError,
        OSError,
        ValueError,
        pa.ArrowException,
    ) as error:
        raise UserError(f"hub dataset {shown}, split {split!r}: {_root_cause(error)}") from None
    if COMMIT_HASH.fullmatch(source.revision) and (cached := hub_commit(rows)) != source.revision:
        # Without a network `datasets` falls back to any cached revision, with no more than a log line.
        raise UserError(f"hub dataset {shown}: the cache has only {cached}; run `snakemake prefetch` with a network")
    return _refuse_no_rows(rows, f"hub dataset {shown}, split {split!r}")


def _refuse_missing_or_empty(path: Path) -> None:
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if path.is_file() and path.stat().st_size == 0:
        raise UserError(f"{path}: empty file")


def _refuse_other_encodings(path: Path) -> None:
    """Raise a UserError that names the first line of a text file that is not UTF-8, if there is one."""
    if path.suffix.lower() not in ENDINGS:
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise UserError(f"{path}: line {number} is not UTF-8 ({error.reason})") from None


def hub_commit(rows: Rows) -> str | None:
    """The hub commit from which rows were loaded: the name of their folder in the cache of `datasets`."""
    if isinstance(rows, ParquetRows | TextRows) or not rows.cache_files:
        return None
    folder = Path(rows.cache_files[0]["filename"]).parent.name
    return folder if COMMIT_HASH.fullmatch(folder) else None


def read_batches(rows: Rows, columns: list[str]) -> Iterator[pa.Table]:
    """Some columns as Arrow tables of about `BATCH_ROWS` rows, in order.

    Rows that are whole Arrow files are read from the files: `datasets` maps them into memory, where pages stay resident
    once they have been read.
    """
    if isinstance(rows, TextRows):
        return rows.read(columns)
    if isinstance(rows, ParquetRows):
        return _read_parquet(rows.path, columns)
    if files := _whole_arrow_files(rows):
        return release_memory(_read_arrow(files, columns))
    return (
        pa.Table.from_batches(table.to_batches())
        for table in rows.select_columns(columns).with_format("arrow").iter(BATCH_ROWS)
    )


def _read_arrow(files: list[str], columns: list[str]) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    for file in files:
        with pa.OSFile(file) as source, pa.ipc.open_stream(source) as reader:
            for batch in reader:
                held.append(batch.select(columns))
                if sum(map(len, held)) >= BATCH_ROWS:
                    yield pa.Table.from_batches(held)
                    held = []
    if held:
        yield pa.Table.from_batches(held)


def _read_parquet(path: Path, columns: list[str]) -> Iterator[pa.Table]:
    from datasets import Features
    from datasets.table import table_cast

    fields = pq.read_schema(path)
    schema = Features.from_arrow_schema(pa.schema([fields.field(name) for name in columns])).arrow_schema
    for table in stream_table(path, columns):
        yield table_cast(table.select(columns), schema)


def _whole_arrow_files(rows: "Dataset") -> list[str]:
    """The Arrow files whose concatenation is exactly these rows; empty if there are none."""
    from datasets.table import ConcatenationTable, MemoryMappedTable

    lines = rows.data.blocks if isinstance(rows.data, ConcatenationTable) else [[rows.data]]
    if rows._indices is not None or any(len(line) > 1 for line in lines):
        return []
    blocks = [block for (block,) in lines]
    for block in blocks:
        if not isinstance(block, MemoryMappedTable):
            return []
        if any(done != "replace_schema_metadata" for done, *_ in block.replays):  # a slice, a cast, ...
            return []
    return [block.path for block in blocks]


def _refuse_no_rows(rows: Sizes, where: Any) -> Sizes:
    if len(rows) == 0:
        raise UserError(f"{where}: no rows")
    return rows


def _root_cause(error: BaseException) -> str:
    """First line of the innermost exception, which `datasets` wraps in others."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
