"""CSV and JSON files say what they say: every value reaches the rows as it stands in the file."""

import gzip
import json

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from labelled_rows import questions, run, save

from elkflow.common.errors import UserError
from elkflow.data.sources import open_path, read_batches
from elkflow.data.text_files import JSON_BLOCK, open_text


def values(path, *columns, label="label"):
    rows = open_path(path, label)
    tables = list(read_batches(rows, list(columns)))
    assert sum(map(len, tables)) == len(rows)
    return [tuple(row.values()) for table in tables for row in table.to_pylist()]


def written(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text", ["00501", "3.10", "TRUE", "NA", "None", "nan", "null", "1e1", "1990-10-03", "12:30", "-0", " 7", "١"]
)
def test_a_csv_value_is_its_text(tmp_path, text):
    path = written(tmp_path / "rows.csv", f"a,label\n{text},0\n{text},1\n")
    assert values(path, "a", "label") == [(text, 0), (text, 1)]


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (["0", "1"], [0, 1]),
        (["True", "false"], [True, False]),
        (["no", "yes"], ["no", "yes"]),
        (["0", ""], ["0", ""]),
        (["0", "yes"], ["0", "yes"]),
        (["0.5", "1"], [0.5, 1.0]),
    ],
)
def test_labels_of_a_csv_file_are_numbers_if_all_are(tmp_path, labels, found):
    path = written(tmp_path / "rows.csv", "a,label\n" + "".join(f"x,{label}\n" for label in labels))
    assert [label for (label,) in values(path, "label")] == found


def test_the_type_of_a_label_is_that_of_the_whole_file(tmp_path):
    """Not of the first megabyte, which is parsed at a time."""
    lines = [f"{'x' * 1000},{n % 2}" for n in range(3000)]
    path = written(tmp_path / "rows.csv", "\n".join(["a,label", *lines, "x,yes"]) + "\n")
    assert {type(label) for (label,) in values(path, "label")} == {str}


def lines(path, rows):
    return written(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def test_json_text_that_looks_like_a_date_is_text(tmp_path):
    rows = [{"a": "1990-10-03", "b": ["2001-01-01T10:00:00Z"], "c": {"d": "1910-10-03"}, "label": n} for n in (0, 1)]
    path = lines(tmp_path / "rows.jsonl", rows)
    assert values(path, "a", "b", "c", "label") == [tuple(row.values()) for row in rows]


def test_json_columns_keep_their_types_over_all_lines(tmp_path):
    long = "x" * (JSON_BLOCK // 2)  # two lines a block
    rows = [{"a": 1, "n": None, "b": long}, {"a": 2, "n": None, "b": long}, {"a": 2.5, "n": "new", "b": long}, {"a": 1}]
    found = values(lines(tmp_path / "rows.jsonl", rows), "a", "n")
    assert found == [(1.0, None), (2.0, None), (2.5, "new"), (1.0, None)]


def test_a_json_column_of_several_types_is_text(tmp_path):
    rows = [{"a": "Yes", "n": 1}, {"a": 5, "n": 2}, {"a": True, "n": 3}, {"a": None, "n": 4}, {"a": [1, "x"], "n": 5}]
    found = values(lines(tmp_path / "rows.jsonl", rows), "a", "n")
    assert found == [("Yes", 1), ("5", 2), ("true", 3), (None, 4), ('[1, "x"]', 5)]


def test_a_json_column_that_changes_its_type_in_a_later_block_is_text(tmp_path):
    long = "x" * JSON_BLOCK
    found = values(lines(tmp_path / "rows.jsonl", [{"a": 5, "b": long}, {"a": "Yes", "b": long}]), "a")
    assert found == [("5",), ("Yes",)]


def test_a_json_array_is_its_rows(tmp_path):
    rows = [{"a": "1990-10-03", "label": 0}, {"a": "é", "label": 1}]
    path = written(tmp_path / "rows.json", json.dumps(rows, indent=2))
    assert values(path, "a", "label") == [("1990-10-03", 0), ("é", 1)]


@pytest.mark.parametrize("name", ["ROWS.CSV", "rows.csv.gz", "Rows.JSONL.GZ", "rows.tsv.gz"])
def test_endings_in_capitals_and_compressed_files(tmp_path, name):
    plain = save(questions(), tmp_path / ("plain" + name.lower().removesuffix(".gz")[4:]))
    path = tmp_path / name
    path.write_bytes(gzip.compress(plain.read_bytes()) if name.lower().endswith(".gz") else plain.read_bytes())
    one, two = (run(tmp_path / str(n), path=str(each)) for n, each in enumerate((plain, path)))
    assert {split: table.to_pylist() for split, table in one.items()} == {s: t.to_pylist() for s, t in two.items()}


def test_numbers_of_a_csv_file_do_not_hide_duplicates(tmp_path):
    """Rows that differ in a number alone, such as their own, are one question."""
    rows = questions() | {"sentence": ["Same."] * 200, "question": ["Same?"] * 200}
    with pytest.raises(UserError, match="more than 1 usable rows"):
        run(tmp_path, path=str(save(rows, tmp_path / "rows.csv")))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.jsonl", "[1, 2]\n"),
        ("rows.jsonl", '{"a": 1}\n{"a": "x"}\n3\n'),
        ("rows.jsonl", '{"a": 1}\n{"a": "x"}\n{"a": \n'),
        ("rows.json", "[1, 2]"),
        ("rows.json", '[{"a": 1}'),
        ("rows.csv.gz", "not compressed"),
    ],
)
def test_what_is_not_in_its_format_is_one_line(tmp_path, name, text):
    with pytest.raises(UserError, match="cannot be read as") as caught:
        open_path(written(tmp_path / name, text), "label")
    assert "\n" not in str(caught.value)


NAMES = st.text(st.characters(categories=["L"]), min_size=1, max_size=3)
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(NAMES, TEXT | st.integers(-(2**53), 2**53) | st.none(), min_size=1), min_size=1))
def test_whatever_json_lines_say_is_read_as_text_or_as_it_is(tmp_path, rows):
    path = lines(tmp_path / "rows.jsonl", rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    found = open_text(path, "label")
    assert set(found.column_names) == set(names)
    table = pa.concat_tables(found.read(names))
    for name in names:
        for row, value in zip(rows, table[name].to_pylist(), strict=True):
            assert value == row.get(name) or value == json.dumps(row.get(name))
