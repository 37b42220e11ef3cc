"""Opening the rows of a dataset, wherever they are, memory-mapped and batch by batch."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from elkflow.errors import UserError
from elkflow.facts import TABLE, generate, load_facts
from elkflow.settings.data import HubSource, QuestionSettings

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger("elkflow")
BATCH = 10_000
COMMIT = re.compile(r"[0-9a-f]{40}")
READERS = {
    ".parquet": "parquet",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".arrow": "arrow",
}


def open_rows(settings: QuestionSettings, cache: Path | None = None) -> dict[str, "Dataset"]:
    """The source's rows, under `train` and, where it has them, `val`.

    Text formats are converted once into a memory-mapped file in `cache` (unset: the `datasets` library's own cache).

    Raises:
        UserError: a file that is missing, empty, truncated or not what its name says; a hub that cannot be reached.
    """
    from datasets import Dataset

    if settings.facts is not None:
        table = Path(settings.facts.table) if settings.facts.table else TABLE
        return {"train": Dataset(generate(load_facts(table), settings.facts.seed, settings.facts.label))}
    if settings.hub is not None:
        parts: dict[str, Dataset] = {part: _from_hub(settings.hub, name) for part, name in settings.hub.splits.items()}
        if not COMMIT.fullmatch(settings.hub.revision) and (found := commit(parts["train"])):
            logger.warning(
                "hub dataset %s: %r is no commit and can move; to pin these rows, write `revision: %s`",
                settings.hub.id,
                settings.hub.revision,
                found,
            )
        return parts
    paths = settings.path if isinstance(settings.path, dict) else {"train": str(settings.path)}
    return {part: _from_path(Path(path), cache) for part, path in paths.items()}


def _from_path(path: Path, cache: Path | None) -> "Dataset":
    import datasets

    if not path.exists():
        raise UserError(f"{path}: no such file")
    try:
        if path.is_dir():
            rows = datasets.load_from_disk(str(path))
            if isinstance(rows, datasets.DatasetDict):
                raise UserError(f"{path}: holds several splits ({', '.join(rows)}); name the folder of one of them")
            return _not_empty(rows, path)
        if path.suffix not in READERS:
            raise UserError(
                f"{path}: unknown format {path.suffix!r}; known are {', '.join(READERS)}, save_to_disk folders"
            )
        if path.stat().st_size == 0:
            raise UserError(f"{path}: empty file")
        if path.suffix == ".parquet" and pq.read_metadata(path).num_rows == 0:
            raise UserError(f"{path}: no rows")  # `datasets` fails on these with a message about batches
        options: dict[str, Any] = {"sep": "\t"} if path.suffix == ".tsv" else {}
        rows = datasets.load_dataset(
            READERS[path.suffix],
            data_files={"train": str(path)},
            split="train",
            cache_dir=str(cache) if cache else None,
            **options,
        )
    except (datasets.exceptions.DatasetGenerationError, OSError, ValueError, pa.ArrowException) as error:
        raise UserError(
            f"{path}: cannot be read as {path.suffix or 'a save_to_disk folder'} ({_cause(error)})"
        ) from None
    return _not_empty(rows, path)


def _from_hub(source: HubSource, split: str) -> "Dataset":
    import datasets
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    shown = f"{source.id}{f' ({source.name})' if source.name else ''} at {source.revision}"
    try:
        rows = datasets.load_dataset(source.id, source.name, split=split, revision=source.revision)
    except HfHubHTTPError as error:
        raise UserError(f"hub dataset {shown}: {_first_line(error)}") from None
    except (
        datasets.exceptions.DatasetNotFoundError,
        datasets.exceptions.DatasetGenerationError,
        LocalEntryNotFoundError,
        ConnectionError,
        OSError,
        ValueError,
        pa.ArrowException,
    ) as error:
        raise UserError(f"hub dataset {shown}, split {split!r}: {_cause(error)}") from None
    if COMMIT.fullmatch(source.revision) and (cached := commit(rows)) != source.revision:
        # Without a network `datasets` takes whatever revision it has, and says so only in a log line.
        raise UserError(
            f"hub dataset {shown}: the cache holds only {cached}; run `snakemake prefetch` where there is a network"
        )
    return _not_empty(rows, f"hub dataset {shown}, split {split!r}")


def commit(rows: "Dataset") -> str | None:
    """The hub commit that rows were loaded from: the name of their folder in the cache of `datasets`."""
    folder = Path(rows.cache_files[0]["filename"]).parent.name if rows.cache_files else ""
    return folder if COMMIT.fullmatch(folder) else None


def batches(rows: "Dataset", columns: list[str]) -> Iterator[pa.Table]:
    """The rows as Arrow tables of `BATCH` rows, in order."""
    for batch in rows.select_columns(columns).with_format("arrow").iter(BATCH):
        yield pa.Table.from_batches(batch.to_batches())


def _not_empty(rows: "Dataset", where: Any) -> "Dataset":
    if len(rows) == 0:
        raise UserError(f"{where}: no rows")
    return rows


def _cause(error: BaseException) -> str:
    """The innermost reason: `datasets` wraps what went wrong in sentences of its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
