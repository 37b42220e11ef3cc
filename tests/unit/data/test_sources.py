"""Sources of rows: every file format, and damaged files."""

import re

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from labelled_rows import questions, run, save, section

from elkflow.common.errors import UserError
from elkflow.data.check_dataset import check_dataset
from elkflow.data.split_dataset import split_dataset


@pytest.mark.parametrize("ending", [".parquet", ".jsonl", ".json", ".csv", ".tsv", ".arrow", ".file.arrow", ""])
def test_every_format_gives_the_same_rows(tmp_path, ending):
    rows = questions()
    if ending in (".csv", ".tsv"):  # where a number is text
        rows["idx"] = [str(number) for number in rows["idx"]]
    expected = run(tmp_path / "parquet", path=str(save(rows, tmp_path / "source.parquet")))
    path = save(questions(), tmp_path / f"rows{ending}")
    check_dataset(section(path=str(path)))
    for name, table in run(tmp_path / "other", path=str(path)).items():
        assert table.to_pylist() == expected[name].to_pylist()


def truncated(path):
    save(questions(), path)
    path.write_bytes(path.read_bytes()[:-100])


def not_utf8(path):
    save(questions(), path)
    path.write_bytes(path.read_bytes().replace(b"Sentence number 7 ", b"Sentence n\xfambre 7 "))


BAD_FILES = {
    "missing": ("rows.parquet", lambda path: None, "rows.parquet: no such file"),
    "empty": ("rows.csv", lambda path: path.write_bytes(b""), "rows.csv: empty file"),
    "truncated parquet": ("rows.parquet", truncated, "rows.parquet: cannot be read as .parquet"),
    "truncated arrow": ("rows.arrow", truncated, "rows.arrow: cannot be read as .arrow"),
    "text that is no parquet": ("rows.parquet", lambda path: path.write_text("hello\n"), "cannot be read as .parquet"),
    "text that is no JSON": (
        "rows.jsonl",
        lambda path: path.write_text('{"a": 1}\n{"a"\n'),
        "cannot be read as .jsonl",
    ),
    "truncated JSON lines": ("rows.jsonl", truncated, "rows.jsonl: cannot be read as .jsonl"),
    "JSON in another encoding": ("rows.jsonl", not_utf8, "rows.jsonl: line 8 is not UTF-8"),
    "ragged CSV": ("rows.csv", lambda path: path.write_text("a,b\n1,2\n1,2,3\n"), "cannot be read as .csv"),
    "wrong encoding": ("rows.csv", not_utf8, "rows.csv: line 9 is not UTF-8"),
    "UTF-16": ("rows.csv", lambda path: path.write_text("a,b\n1,2\n", encoding="utf-16"), "line 1 is not UTF-8"),
    "unknown format": ("rows.xlsx", lambda path: path.write_text("x"), "unknown format '.xlsx'"),
    "an empty folder": ("rows", lambda path: path.mkdir(), "cannot be read as a save_to_disk folder"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(tmp_path, case):
    name, make, message = BAD_FILES[case]
    path = tmp_path / name
    make(path)
    given = section(path=str(path))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        split_dataset(given.questions(), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=re.escape(str(path))):
        check_dataset(given)


def test_two_columns_of_one_name(tmp_path):
    table = pa.table(questions())
    pq.write_table(table.append_column("question", table["sentence"]), tmp_path / "rows.parquet")
    for check_rows in (check_dataset, lambda given: split_dataset(given.questions(), tmp_path / "out")):
        with pytest.raises(UserError, match=r"rows\.parquet: two columns are called 'question'"):
            check_rows(section(path=str(tmp_path / "rows.parquet")))


def test_bytes_that_are_no_text_are_found_in_any_batch(tmp_path):
    rows = questions(12_000)
    text = [f"S\xfc\xdfe {n}".encode("latin-1" if n == 11_003 else "utf-8") for n in rows["idx"]]
    path = save(rows | {"sentence": pa.array(text).view(pa.string())}, tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=r"rows\.parquet, row 11003: column 'sentence' is not UTF-8 text"):
        split_dataset(section(path=str(path)).questions(), tmp_path / "out")


def test_a_folder_of_several_splits(tmp_path):
    rows = datasets.Dataset(pa.table(questions()))
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "rows")
    with pytest.raises(UserError, match="has several splits"):
        split_dataset(section(path=str(tmp_path / "rows")).questions(), tmp_path / "out")
