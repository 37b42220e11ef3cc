"""Raw rows to disjoint, balanced train, ppo and val files."""

import logging
import os
from collections import Counter
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from elkflow.errors import UserError
from elkflow.facts import SCHEMA, TABLE, load_facts, rows_per_country
from elkflow.files import BATCH, atomic, read_table, stream_table
from elkflow.hashes import hash_rows, is_text, normalised
from elkflow.lineage import check
from elkflow.reorder import reorder
from elkflow.settings.data import SPLITS, DatasetSettings, QuestionSettings
from elkflow.splits import Keys, connected, deal, mix

if TYPE_CHECKING:
    from datasets import Dataset

    from elkflow.sources import ParquetRows

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
    labels, groups = ({part: getattr(own, name) for part, own in keys.items()} for name in ("label", "group"))
    del keys  # its other hashes have served
    found = {part: {"rows": len(rows), "commit": commit(rows)} for part, rows in sources.items()}
    facts: dict[str, Any] = {"sources": found, "removed": dealt.removed, "splits": {}}
    for name in SPLITS:
        part = "val" if name == "val" and "val" in sources else "train"
        rows = dealt.rows[name]
        path = folder / f"{name}.parquet"
        _write(settings, sources[part], rows, part, fields[part], labels[part], groups[part], path)
        counts = np.bincount(labels[part][rows], minlength=len(settings.labels))
        facts["splits"][name] = {
            "rows": len(rows),
            "groups": len(np.unique(groups[part][rows])),
            "labels": dict(zip(settings.labels, map(int, counts), strict=True)),
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
    seen: dict[str, dict[str, np.ndarray]] = {}
    for name in SPLITS:
        path = manifest.parent / content["outputs"][name]["path"]
        labels: Counter[int] = Counter()
        parts: dict[str, list[np.ndarray]] = {"id": [], "group": []}
        for table in stream_table(path, ["id", "group", "label"]):
            labels.update(dict(enumerate(np.bincount(table["label"].to_numpy()).tolist())))
            for column, each in parts.items():
                each.append(hash_rows([table[column]]))
        own = {column: np.concatenate([np.empty(0, np.uint64), *each]) for column, each in parts.items()}
        stated = content["facts"]["splits"][name]
        found = {
            "rows": len(own["id"]),
            "groups": len(np.unique(own["group"])),
            "labels": {key: labels[n] for n, key in enumerate(names or map(str, range(max(labels, default=-1) + 1)))},
        }
        if different := [key for key in found if found[key] != stated[key]]:
            raise UserError(
                f"{path}: {different[0]} are {found[different[0]]}, not {stated[different[0]]} as in {manifest}"
            )
        for before, others in seen.items():
            for column, hashes in others.items():
                shared = np.isin(own[column], hashes)
                if shared.any():
                    value = read_table(path, [column])[column][int(shared.argmax())].as_py()
                    raise UserError(f"{path}: {column} {value!r} is in {before} too")
        if len(np.unique(own["id"])) < len(own["id"]):
            raise UserError(f"{path}: an id appears twice")
        seen[name] = own
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
    from elkflow.sources import peek

    assert settings.split is not None and settings.path is not None
    paths = settings.path if isinstance(settings.path, dict) else {"train": settings.path}
    keys, fields = {}, set()
    for part, path in paths.items():
        names, tables = peek(Path(path))
        fields = set(_fields(settings, names, path))
        groups = _group_columns(settings)
        labels: list[np.ndarray] = []
        hashes: dict[str, list[np.ndarray]] = {name: [] for name in [*groups, settings.pair] if name}
        start = 0
        for table in tables(settings.label, list(hashes)):
            _refuse_nulls(table[settings.label], settings.label, path, start)
            labels.append(label_codes(table[settings.label], settings.labels, settings.label, path, start))
            for name, each in hashes.items():
                each.append(hash_rows([table[name]]))
            start += len(table)
        if not start:
            raise UserError(f"{path}: no rows")
        whole = {name: np.concatenate(each) for name, each in hashes.items()}
        rows = np.arange(start, dtype=np.uint64)
        pair = whole[settings.pair] if settings.pair else None
        tied = [whole[name] for name in groups] or [rows]
        tied += [] if pair is None else [pair]
        keys[part] = Keys(np.concatenate(labels), rows, connected(*tied), rows, pair)
    deal(keys["train"], keys.get("val"), settings.split.model_copy(update={"duplicates": "keep"}), len(settings.labels))
    return fields


def _where(settings: QuestionSettings, part: str) -> str:
    """How messages name a source."""
    if settings.hub is not None:
        return f"{settings.hub.id} ({settings.hub.splits[part]})"  # type: ignore[index]
    if settings.facts is not None:
        return settings.facts.table or "facts"
    return settings.path[part] if isinstance(settings.path, dict) else str(settings.path)  # type: ignore[index]


def _fields(settings: QuestionSettings, names: list[str], where: str) -> dict[str, str]:
    """Field name to source column, after checking that every column the settings name is there."""
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{where}: two columns are called {twice[0]!r}")
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


def _keys(settings: QuestionSettings, rows: "Dataset | ParquetRows", fields: dict[str, str], where: str) -> Keys:
    """Check every row and hash what the dealing needs of it; holds one batch of text at a time.

    Raises:
        UserError: null or empty text, a label that is none, an id that appears twice.
    """
    from elkflow.sources import batches

    groups = _group_columns(settings)
    ties = [*groups, *([settings.pair] if settings.pair else [])]
    special = [*ties, *([settings.id] if settings.id else [])]
    columns = list(dict.fromkeys([settings.label, *special, *fields.values()]))
    labels = np.empty(len(rows), np.min_scalar_type(len(settings.labels)))
    content, text = np.empty(len(rows), np.uint64), np.empty(len(rows), np.uint64)
    hashes = {name: np.empty(len(rows), np.uint64) for name in special}
    start = 0
    for batch in batches(rows, columns):
        for name in columns:
            _refuse_nulls(batch[name], name, where, start)
        here = slice(start, start + len(batch))
        labels[here] = label_codes(batch[settings.label], settings.labels, settings.label, where, start)
        texts = [name for name in fields.values() if is_text(batch[name].type) and name not in special]
        content[here] = hash_rows([batch[name] for name in fields.values()]) ^ mix(labels[here], 0)
        text[here] = hash_rows([normalised(batch[name]) for name in texts or fields.values()])
        for name, found in hashes.items():
            found[here] = hash_rows([batch[name]])
        start += len(batch)
    if settings.id:
        _refuse_duplicates(hashes[settings.id], rows, settings.id, where)
    # Without a group of its own a row is grouped by its text, which keeps near-duplicates together at least.
    tied = [hashes[name] for name in ties] if groups else [text, *(hashes[name] for name in ties)]
    return Keys(labels, content, connected(*tied), text, hashes.get(settings.pair) if settings.pair else None)


def label_codes(column: pa.ChunkedArray, names: list[str], key: str, where: str, start: int = 0) -> np.ndarray:
    """[N] int64 labels from numbers, booleans or names.

    Raises:
        UserError: a value that is no label; the message names its row (counted from 0, after `start`).
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
        raise UserError(f"{where}: column {key!r} holds {kind}; labels are whole numbers or names")
    if bad.any():
        row = int(bad.argmax())
        shown = f"{column[row].as_py()!r:.60}"
        raise UserError(
            f"{where}, row {start + row}: label {shown} is not among 0 to {len(names) - 1} or {', '.join(names)}"
        )
    return codes.astype(np.int64)


def _refuse_nulls(column: pa.ChunkedArray, name: str, where: str, start: int) -> None:
    """Refuse missing values, text of white space only, and bytes that are no text (Arrow takes any from a file)."""
    bad = pc.is_null(column, nan_is_null=True)
    if is_text(column.type):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            row = next(n for n, value in enumerate(column.cast(pa.binary())) if not _decodes(value.as_py() or b""))
            raise UserError(f"{where}, row {start + row}: column {name!r} is not UTF-8 text") from None
        blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(column)), 0)
        bad = pc.or_(bad, pc.fill_null(blank, True))
    if pc.any(bad).as_py():
        row = pc.index(bad, True).as_py()
        raise UserError(f"{where}, row {start + row}: column {name!r} is empty")


def _decodes(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _refuse_duplicates(hashes: np.ndarray, rows: "Dataset | ParquetRows", name: str, where: str) -> None:
    from elkflow.sources import batches

    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    same = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(same):
        first, second = sorted((int(order[same[0]]), int(order[same[0] + 1])))
        values = chain.from_iterable(table[name] for table in batches(rows, [name]))
        value = next(islice(values, first, None)).as_py()
        raise UserError(f"{where}, rows {first} and {second}: both have the {name} {value!r}")


def _write(
    settings: QuestionSettings,
    rows: "Dataset | ParquetRows",
    numbers: np.ndarray,
    part: str,
    fields: dict[str, str],
    labels: np.ndarray,
    groups: np.ndarray,
    path: Path,
) -> None:
    """Stream the rows of the given numbers into a parquet file.

    Args:
        labels, groups: of every row of the source.
    """
    from elkflow.sources import batches

    named = _group_columns(settings)
    special = [settings.label, *named, *([settings.id] if settings.id else [])]
    columns = list(dict.fromkeys([*special, *fields.values()]))
    with atomic(path) as temporary:
        writer, start = None, 0
        for batch in reorder(batches(rows, columns), numbers, path.parent):
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
            writer.write_table(table, row_group_size=BATCH)
            start += len(batch)
        assert writer is not None  # no split is empty
        writer.close()
