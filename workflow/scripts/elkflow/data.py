"""Raw rows to disjoint, balanced train, ppo and val files."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from elkflow.errors import UserError
from elkflow.facts import SCHEMA, TABLE, load_facts, rows_per_country
from elkflow.files import atomic, read_table
from elkflow.lineage import check
from elkflow.settings.data import SPLITS, DatasetSettings, QuestionSettings
from elkflow.splits import Keys, connected, deal, mix

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger("elkflow")
RESERVED = ("id", "group", "label")


def split_dataset(settings: QuestionSettings, folder: Path) -> dict[str, Any]:
    """Write train.parquet, ppo.parquet and val.parquet into `folder`; return what the manifest should say of them.

    Columns: id (unique), group, the source's fields, label (int64). Nothing is written unless all rows are sound.

    Raises:
        UserError: bad rows (the message names file, row and column) or too few of them.
    """
    from elkflow.sources import commit, open_rows

    sources = open_rows(settings)
    fields = {part: _fields(settings, rows.column_names, _where(settings, part)) for part, rows in sources.items()}
    keys = {part: _keys(settings, rows, fields[part], _where(settings, part)) for part, rows in sources.items()}
    assert settings.split is not None  # the settings see to it
    dealt = deal(keys["train"], keys.get("val"), settings.split, len(settings.labels))
    counts = {part: {"rows": len(rows), "commit": commit(rows)} for part, rows in sources.items()}
    facts: dict[str, Any] = {"sources": counts, "removed": dealt.removed, "splits": {}}
    for name in SPLITS:
        part = "val" if name == "val" and "val" in sources else "train"
        rows = dealt.rows[name]
        _write(settings, sources[part].select(rows), rows, part, fields[part], keys[part], folder / f"{name}.parquet")
        labels = np.bincount(keys[part].label[rows], minlength=len(settings.labels))
        facts["splits"][name] = {
            "rows": len(rows),
            "groups": len(np.unique(keys[part].group[rows])),
            "labels": dict(zip(settings.labels, map(int, labels), strict=True)),
        }
        logger.info("%s: %s", name, facts["splits"][name])
    logger.info("left out: %s", dealt.removed)
    return facts


def verify(manifest: Path) -> dict[str, Any]:
    """Recompute what a split's manifest says of its files: hashes, rows, labels, and that no id or group is in two.

    Returns:
        The manifest.

    Raises:
        UserError: what does not agree; the message names the file.
    """
    content = check(manifest)
    names = content["settings"].get("labels")  # a mixture has none: its datasets' labels mean different things
    seen: dict[str, dict[str, str]] = {"id": {}, "group": {}}
    for name in SPLITS:
        path = manifest.parent / content["outputs"][name]["path"]
        table = read_table(path, ["id", "group", "label"])
        labels = np.bincount(table["label"].to_numpy(), minlength=len(names or ()))
        stated = content["facts"]["splits"][name]
        found = {
            "rows": table.num_rows,
            "groups": pc.count_distinct(table["group"]).as_py(),
            "labels": dict(zip(names or map(str, range(len(labels))), map(int, labels), strict=True)),
        }
        if different := [key for key in found if found[key] != stated[key]]:
            raise UserError(
                f"{path}: {different[0]} are {found[different[0]]}, not {stated[different[0]]} as in {manifest}"
            )
        for column, before in seen.items():
            for value in table[column].unique().to_pylist():
                if before.setdefault(value, name) != name:
                    raise UserError(f"{path}: {column} {value!r} is in {before[value]} too")
        if pc.count_distinct(table["id"]).as_py() != table.num_rows:
            raise UserError(f"{path}: an id appears twice")
    return content


def preflight(settings: DatasetSettings) -> None:
    """Check what can be checked of a dataset before anything runs: templates, and local files' columns, labels, sizes.

    Costs a few milliseconds for the built-in questions and for hub datasets (of which only the templates are checked:
    no network is touched), and for local files the reading of the label, id, group and pair columns: about 0.1 s for a
    million rows of parquet or Arrow, 1 s for CSV or JSON lines. Text is neither read into memory nor checked, and
    duplicates are not looked for: `split_dataset` does that, and may still find too few rows.

    Raises:
        UserError: what is wrong, with the key, file or row.
    """
    from elkflow.templates import BAR, load_template

    needed: dict[str, set[str]] = {}
    for name, wording in settings.wordings.items():
        template = load_template(wording.template)
        source = load_template(wording.about) if wording.about else template
        needed[name] = set(source.fields)
        choices = [part.strip() for part in (source.answer_choices or "{").split(BAR)]
        if settings.answers and "{" not in choices[0] and sorted(choices) != sorted(settings.answers):
            raise UserError(f"wordings.{name}: its template answers {choices}, but `answers` are {settings.answers}")
        if wording.about and (unknown := template.fields - {"text", "question", "answer", "label"}):
            raise UserError(
                f"wordings.{name}: a template about an answer knows text, question, answer and label, not"
                f" {min(unknown)!r}"
            )
    if settings.facts is not None:
        facts = load_facts(Path(settings.facts.table) if settings.facts.table else TABLE)
        fields = set(SCHEMA.names) if settings.columns is None else set(settings.columns)
        sizes = {name: int(getattr(settings.split, name)) for name in SPLITS if getattr(settings.split, name) != "rest"}
        if sum(-(-size // rows_per_country()) for size in sizes.values()) > len(facts):
            asked = " + ".join(f"{size} {name}" for name, size in sizes.items())
            raise UserError(
                f"split: {asked} rows are more than {len(facts)} countries give ({rows_per_country()} each)"
            )
    elif settings.path is not None:
        fields = _preflight_files(settings)
    else:
        return
    for name, wanted in needed.items():
        if missing := wanted - fields - {"label", "group", "id"}:
            has = ", ".join(sorted(fields))
            raise UserError(f"wordings.{name}: the template reads {min(missing)!r}, but the rows have {has}")


def source_files(settings: QuestionSettings) -> list[str]:
    """Local files and folders that the rows are read from."""
    return [os.path.relpath(TABLE)] if settings.facts and not settings.facts.table else settings.local_files()


def template_files(settings: DatasetSettings, wording: str) -> list[str]:
    """Template files behind one wording."""
    from elkflow.templates import locate

    chosen = settings.wordings[wording]
    names = [name for name in (chosen.template, chosen.about) if name]
    return list(dict.fromkeys(os.path.relpath(locate(name)[0]) for name in names))


def _preflight_files(settings: DatasetSettings) -> set[str]:
    """Check the local files' columns, labels and sizes; return the names of the fields."""
    assert settings.split is not None and settings.path is not None
    paths = settings.path if isinstance(settings.path, dict) else {"train": settings.path}
    keys, fields = {}, set()
    for part, path in paths.items():
        names, read = _peek(Path(path))
        fields = set(_fields(settings, names, path))
        groups = _group_columns(settings)
        table = read([name for name in dict.fromkeys([settings.label, settings.pair, *groups]) if name])
        if not len(table):
            raise UserError(f"{path}: no rows")
        _refuse_nulls(table[settings.label], settings.label, path, 0)
        label = label_codes(table[settings.label], settings.labels, settings.label, path)
        rows = np.arange(len(table), dtype=np.uint64)
        tied = [_hash([table[name]]) for name in groups] or [rows]
        pair = _hash([table[settings.pair]]) if settings.pair else None
        keys[part] = Keys(label, rows, connected(*tied, *([pair] if pair is not None else [])), rows, pair)
    deal(keys["train"], keys.get("val"), settings.split.model_copy(update={"duplicates": "keep"}), len(settings.labels))
    return fields


def _peek(path: Path) -> tuple[list[str], Callable[[list[str]], pa.Table]]:
    """A local file's column names, and a function that reads some of them.

    Raises:
        UserError: the file is missing, empty or not what its name says.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if path.is_file() and path.stat().st_size == 0:
        raise UserError(f"{path}: empty file")
    try:
        if path.suffix == ".parquet":
            file = pq.ParquetFile(path)
            return file.schema_arrow.names, lambda columns: file.read(columns=columns)
        if path.suffix in (".csv", ".tsv"):
            table = pyarrow.csv.read_csv(
                path,
                parse_options=pyarrow.csv.ParseOptions(
                    delimiter="\t" if path.suffix == ".tsv" else ",", newlines_in_values=True
                ),
            )
        elif path.suffix in (".jsonl", ".ndjson", ".json"):
            table = pyarrow.json.read_json(path)
        else:  # Arrow files and save_to_disk folders are memory-mapped: opening them costs next to nothing
            from elkflow.sources import open_rows

            rows = open_rows(QuestionSettings.model_construct(path=str(path)))["train"]
            return rows.column_names, lambda columns: pa.Table.from_batches(
                rows.data.table.select(columns).to_batches()
            )
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        raise UserError(f"{path}: cannot be read as {path.suffix} ({str(error).splitlines()[0]})") from None
    if binary := [field.name for field in table.schema if pa.types.is_binary(field.type)]:
        raise UserError(f"{path}: column {binary[0]!r} is not UTF-8 text")
    return table.column_names, table.select


def _where(settings: QuestionSettings, part: str) -> str:
    """How messages name a source."""
    if settings.hub is not None:
        return f"{settings.hub.id} ({settings.hub.splits[part]})"  # type: ignore[index]
    if settings.facts is not None:
        return settings.facts.table or "facts"
    return settings.path[part] if isinstance(settings.path, dict) else str(settings.path)  # type: ignore[index]


def _fields(settings: QuestionSettings, names: list[str], where: str) -> dict[str, str]:
    """Field name to source column, after checking that every column the settings name is there."""
    used = {"label": settings.label, "id": settings.id, "pair": settings.pair}
    used |= {f"group[{n}]": column for n, column in enumerate(_group_columns(settings))}
    used |= {f"columns.{name}": column for name, column in (settings.columns or {}).items()}
    for key, column in used.items():
        if column is not None and column not in names:
            raise UserError(f"{where}: column {column!r} ({key}) is missing; it has {', '.join(names)}")
    if settings.columns is not None:
        fields = dict(settings.columns)
    else:
        taken = {settings.label: "label", settings.id: "id"}
        fields = {name: name for name in names if name not in taken}
    for name in RESERVED:
        if name in fields:
            raise UserError(f"{where}: a field cannot be called {name!r}; give it another name with `columns`")
    return fields


def _group_columns(settings: QuestionSettings) -> list[str]:
    return [settings.group] if isinstance(settings.group, str) else list(settings.group or [])


def _keys(settings: QuestionSettings, rows: "Dataset", fields: dict[str, str], where: str) -> Keys:
    """Check every row and hash what the dealing needs of it; holds one batch of text at a time.

    Raises:
        UserError: null or empty text, a label that is none, an id that appears twice.
    """
    from elkflow.sources import batches

    groups = _group_columns(settings)
    special = [name for name in (settings.id, settings.pair, *groups) if name]
    columns = list(dict.fromkeys([settings.label, *special, *fields.values()]))
    found: dict[str, list[np.ndarray]] = {name: [] for name in ("label", "content", "text", "id", "pair", *groups)}
    start = 0
    for batch in batches(rows, columns):
        for name in columns:
            _refuse_nulls(batch[name], name, where, start)
        label = label_codes(batch[settings.label], settings.labels, settings.label, where, start)
        texts = [name for name in fields.values() if _is_text(batch[name].type) and name not in special]
        found["label"].append(label)
        found["content"].append(_hash([batch[name] for name in fields.values()]) ^ mix(label, 0))
        found["text"].append(_hash([_normalised(batch[name]) for name in texts or fields.values()]))
        for key, column in (("id", settings.id), ("pair", settings.pair), *((name, name) for name in groups)):
            if column:
                found[key].append(_hash([batch[column]]))
        start += len(batch)
    whole = {name: np.concatenate(parts) for name, parts in found.items() if parts}
    if settings.id:
        _refuse_duplicates(whole["id"], rows, settings.id, where)
    # Without a group of its own a row is grouped by its text, which keeps near-duplicates together at least.
    tied = [whole[name] for name in groups] or [whole["text"]]
    if settings.pair:
        tied.append(whole["pair"])
    return Keys(whole["label"], whole["content"], connected(*tied), whole["text"], whole.get("pair"))


def label_codes(column: pa.ChunkedArray, names: list[str], key: str, where: str, start: int = 0) -> np.ndarray:
    """[N] int64 labels from numbers, booleans or names.

    Raises:
        UserError: a value that is no label; the message names its row (counted from 0, after `start`).
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if _is_text(kind):
        codes = pc.index_in(column, pa.array(names, kind)).to_numpy(zero_copy_only=False)
        bad = np.isnan(codes.astype(float))
    elif pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        codes = column.cast(pa.int64()).to_numpy()
        bad = (codes < 0) | (codes >= len(names))
    else:
        raise UserError(f"{where}: column {key!r} holds {kind}; labels are whole numbers or names")
    if bad.any():
        row = int(bad.argmax())
        shown = f"{column[row].as_py()!r:.60}"
        raise UserError(
            f"{where}, row {start + row}: label {shown} is not among 0 to {len(names) - 1} or {', '.join(names)}"
        )
    return codes.astype(np.int64)


def _refuse_nulls(column: pa.ChunkedArray, name: str, where: str, start: int) -> None:
    bad = pc.is_null(column, nan_is_null=True)
    if _is_text(column.type):
        blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(column)), 0)
        bad = pc.or_(bad, pc.fill_null(blank, True))
    if pc.any(bad).as_py():
        row = pc.index(bad, True).as_py()
        raise UserError(f"{where}, row {start + row}: column {name!r} is empty")


def _refuse_duplicates(hashes: np.ndarray, rows: "Dataset", name: str, where: str) -> None:
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    if len(same):
        first, second = sorted((int(order[same[0]]), int(order[same[0] + 1])))
        raise UserError(f"{where}, rows {first} and {second}: both have the {name} {rows[first][name]!r}")


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _normalised(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Lower case, runs of anything but letters and digits as one space."""
    if not _is_text(column.type):
        return column
    text = pc.replace_substring_regex(pc.utf8_lower(column), pattern=r"[^\p{L}\p{N}]+", replacement=" ")
    return pc.utf8_trim_whitespace(text)


def _hash(columns: list[pa.ChunkedArray]) -> np.ndarray:
    """[N] uint64 hash of the values of each row: SipHash with a fixed key, as pandas computes it."""
    import pandas as pd

    total = np.zeros(len(columns[0]), np.uint64)
    for place, column in enumerate(columns):
        values = column.to_numpy(zero_copy_only=False)
        if values.dtype == object and not _is_text(column.type):
            values = np.array([repr(value) for value in column.to_pylist()], dtype=object)
        hashed = pd.util.hash_array(values, categorize=False)
        total = mix(total ^ hashed, place)
    return total


def _write(
    settings: QuestionSettings,
    rows: "Dataset",
    numbers: np.ndarray,
    part: str,
    fields: dict[str, str],
    keys: Keys,
    path: Path,
) -> None:
    """Stream `rows` (source row `numbers`) into a parquet file."""
    from elkflow.sources import batches

    groups = _group_columns(settings)
    special = [settings.label, *groups, *([settings.id] if settings.id else [])]
    columns = list(dict.fromkeys([*special, *fields.values()]))
    with atomic(path) as temporary:
        writer, start = None, 0
        for batch in batches(rows, columns):
            here = numbers[start : start + len(batch)]
            ids = batch[settings.id].cast(pa.string()) if settings.id else pa.array([f"{part}-{row}" for row in here])
            if len(groups) == 1:
                group = batch[groups[0]].cast(pa.string())
            else:
                group = pa.array([f"{value:016x}" for value in keys.group[here]]) if groups else ids
            table = pa.table(
                {"id": ids, "group": group}
                | {name: batch[column] for name, column in fields.items()}
                | {"label": pa.array(keys.label[here])}
            )
            writer = writer or pq.ParquetWriter(temporary, table.schema)
            writer.write_table(table)
            start += len(batch)
        assert writer is not None  # no split is empty
        writer.close()
