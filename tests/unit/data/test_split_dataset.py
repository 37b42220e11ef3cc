"""From source files to split files: every source, every column, and every kind of bad row."""

import json
import os
import re
import subprocess
import sys

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from split_dataset import main

from elkflow.common.errors import UserError, validation_message
from elkflow.common.files import sha256
from elkflow.common.manifests import check_manifest, settings_hash
from elkflow.config.data import DatasetSettings
from elkflow.data.check_dataset import check_dataset
from elkflow.data.split_dataset import split_dataset
from elkflow.orchestration.rule_inputs import source_files, template_files
from elkflow.verify.manifest_chain import Walk
from elkflow.verify.split_counts import verify

SPLIT = {"train": 20, "ppo": 20, "val": 10}
ROWS = 200


def questions(count=ROWS, start=0):
    numbers = range(start, start + count)
    return {
        "idx": list(numbers),
        "sentence": [f"Sentence number {n} says that {n * n}." for n in numbers],
        "question": [f"What does number {n} say?" for n in numbers],
        "label": [n % 2 for n in numbers],
    }


def section(**keys):
    given = {"split": SPLIT, "wordings": {"training": "qnli_training"}} | keys
    return DatasetSettings.model_validate({key: value for key, value in given.items() if value is not None})


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.parquet"
    pq.write_table(pa.table(questions()), path)
    return path


def run(tmp_path, **keys):
    given = section(**keys)
    split_dataset(given.questions(), tmp_path / "out")
    return {name: pq.read_table(tmp_path / "out" / f"{name}.parquet") for name in ("train", "ppo", "val")}


def save(rows, path):
    """Write rows in the format that the path's ending names."""
    table = pa.table(rows)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix in (".jsonl", ".json"):
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    elif path.suffix in (".csv", ".tsv"):
        datasets.Dataset(table).to_csv(path, sep="\t" if path.suffix == ".tsv" else ",", index=False)
    elif path.suffix == ".arrow":
        kind = pa.ipc.new_file if path.name.endswith(".file.arrow") else pa.ipc.new_stream
        with pa.OSFile(str(path), "wb") as sink, kind(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        datasets.Dataset(table).save_to_disk(path)
    return path


@pytest.mark.parametrize("ending", [".parquet", ".jsonl", ".json", ".csv", ".tsv", ".arrow", ".file.arrow", ""])
def test_every_format_gives_the_same_rows(tmp_path, ending, source):
    expected = run(tmp_path / "parquet", path=str(source))
    path = save(questions(), tmp_path / f"rows{ending}")
    check_dataset(section(path=str(path)))
    for name, table in run(tmp_path / "other", path=str(path)).items():
        assert table.to_pylist() == expected[name].to_pylist()


def test_split_files_have_id_group_fields_and_label(tmp_path, source):
    tables = run(tmp_path, path=str(source))
    for name, size in SPLIT.items():
        assert tables[name].num_rows == size
        assert tables[name].column_names == ["id", "group", "idx", "sentence", "question", "label"]
        assert tables[name]["label"].type == pa.int64()
    ids = [row["id"] for table in tables.values() for row in table.to_pylist()]
    assert len(set(ids)) == len(ids) == 50
    for table in tables.values():
        for row in table.to_pylist():
            assert row["id"] == f"train-{row['idx']}"
            assert row["sentence"] == f"Sentence number {row['idx']} says that {row['idx'] ** 2}."
            assert row["label"] == row["idx"] % 2


def test_columns_are_chosen_and_renamed(tmp_path, source):
    tables = run(tmp_path, path=str(source), id="idx", columns={"text": "sentence", "asked": "question"})
    assert tables["val"].column_names == ["id", "group", "text", "asked", "label"]
    assert tables["val"]["id"].to_pylist()[0].isdigit()


def test_groups_never_end_in_two_splits(tmp_path):
    rows = questions() | {"article": [f"article {n // 4}" for n in range(ROWS)]}
    path = save(rows, tmp_path / "rows.parquet")
    tables = run(tmp_path, path=str(path), group="article")
    groups = [set(table["group"].to_pylist()) for table in tables.values()]
    assert all(group.startswith("article ") for group in groups[0])
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])


def test_several_group_columns_count_together(tmp_path):
    rows = questions() | {
        "article": [n // 4 for n in range(ROWS)],
        "author": [n // 20 * 9 + (n % 20 + 2) // 8 for n in range(ROWS)],
    }
    tables = run(tmp_path, path=str(save(rows, tmp_path / "rows.parquet")), group=["article", "author"])
    for column in ("article", "author", "group"):
        values = [set(table[column].to_pylist()) for table in tables.values()]
        assert not (values[0] & values[1] or values[0] & values[2] or values[1] & values[2])


def test_named_and_boolean_labels(tmp_path):
    rows = questions()
    rows["label"] = [("no", "yes")[label] for label in rows["label"]]
    tables = run(tmp_path / "a", path=str(save(rows, tmp_path / "a.jsonl")), labels=["no", "yes"])
    assert {(row["idx"] % 2, row["label"]) for row in tables["train"].to_pylist()} == {(0, 0), (1, 1)}
    rows["label"] = [label == "yes" for label in rows["label"]]
    tables = run(tmp_path / "b", path=str(save(rows, tmp_path / "b.parquet")))
    assert {(row["idx"] % 2, row["label"]) for row in tables["train"].to_pylist()} == {(0, 0), (1, 1)}


def test_a_val_file_of_its_own(tmp_path, source):
    val = save(questions(40, start=1000), tmp_path / "val.jsonl")
    tables = run(tmp_path, path={"train": str(source), "val": str(val)}, split=SPLIT | {"val": "rest"})
    assert sorted(tables["val"]["idx"].to_pylist()) == list(range(1000, 1040))
    assert set(tables["val"]["id"].to_pylist()) == {f"val-{n}" for n in range(40)}


def test_row_order_does_not_matter(tmp_path):
    rows = pa.table(questions())
    order = np.random.default_rng(0).permutation(ROWS)
    one = run(tmp_path / "a", path=str(save(questions(), tmp_path / "a.parquet")), id="idx")
    pq.write_table(rows.take(order), tmp_path / "b.parquet")
    two = run(tmp_path / "b", path=str(tmp_path / "b.parquet"), id="idx")
    for name in one:
        assert one[name].to_pylist() == two[name].to_pylist()


def test_the_same_bytes_every_time(tmp_path, source):
    for folder in ("a", "b"):
        run(tmp_path / folder, path=str(source))
    assert sha256(tmp_path / "a" / "out") == sha256(tmp_path / "b" / "out")


def test_near_duplicates_are_left_out_once_and_counted(tmp_path):
    rows = questions() | {"idx": ["same"] * ROWS}
    for n, twin in ((0, "sentence NUMBER 5, says -- that 25!"), (1, "Sentence number 6 says\tthat   36")):
        rows["sentence"][n], rows["question"][n] = twin, rows["question"][n + 5].upper()
    path = save(rows, tmp_path / "rows.parquet")
    facts = split_dataset(section(path=str(path), split={"train": 100, "ppo": 86, "val": 10}).questions(), tmp_path)
    assert facts["removed"] == {"duplicates": 2}
    texts = [text for name in SPLIT for text in pq.read_table(tmp_path / f"{name}.parquet")["sentence"].to_pylist()]
    plain = [re.sub(r"\W+", " ", text).strip().lower() for text in texts]
    assert len(set(plain)) == len(plain) == 196


@pytest.mark.parametrize("column", ["text", "content", "pair", "hash"])
def test_a_group_column_may_have_any_name(tmp_path, column):
    rows = questions() | {column: [f"article {n // 4}" for n in range(ROWS)]}
    tables = run(tmp_path, path=str(save(rows, tmp_path / "rows.parquet")), group=column)
    assert set(tables["val"]["group"].to_pylist()) == set(tables["val"][column].to_pylist())


def test_equal_in_processes_that_hash_differently(tmp_path, source):
    """Python's `hash()` of text differs from process to process; no file may depend on it."""
    val = save(questions(40, start=1000), tmp_path / "val.csv")
    given = {
        "facts": section(facts={}, split={"train": 160, "ppo": 240, "val": 80}),
        "rows": section(path={"train": str(source), "val": str(val)}, group=["sentence", "question"]),
    }
    code = "import sys; sys.path[:0] = sys.argv.pop(1).split(':'); import split_dataset as a, mix_datasets as b;" + (
        "[a.main(['--settings', each, '--folder', f'{sys.argv[1]}/{n}']) for n, each in enumerate(sys.argv[2:])];"
        "names = [f'{sys.argv[1]}/{n}/manifest.json' for n in (0, 1)];"
        "b.main(['--names', 'x', 'y', '--manifests', *names, '--folder', f'{sys.argv[1]}/mixed'])"
    )
    settings = [each.questions().model_dump_json() for each in given.values()]
    for seed in ("0", "4242"):
        command = [sys.executable, "-c", code, ":".join(sys.path), str(tmp_path / seed), *settings]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": seed})
    names = sorted(path.relative_to(tmp_path / "0") for path in (tmp_path / "0").rglob("*") if path.is_file())
    assert len(names) == 3 * 4
    for name in names:
        assert sha256(tmp_path / "0" / name) == sha256(tmp_path / "4242" / name), name


def test_the_built_in_questions(tmp_path):
    tables = run(tmp_path, facts={}, split={"train": 160, "ppo": 240, "val": 80})
    assert {name: table.num_rows for name, table in tables.items()} == {"train": 160, "ppo": 240, "val": 80}
    for table in tables.values():
        rows = table.to_pylist()
        assert sum(row["label"] for row in rows) == len(rows) / 2
        pairs = [row["pair"] for row in rows]
        assert all(pairs.count(pair) == 2 for pair in pairs)
        assert all(row["group"] == row["country"] for row in rows)


def test_the_script_writes_a_manifest_that_checks(tmp_path, source):
    given = section(path=str(source)).questions().model_dump_json()
    main(["--settings", given, "--folder", str(tmp_path / "out"), "--sources", str(source)])
    manifest = check_manifest(tmp_path / "out" / "manifest.json")
    assert manifest["facts"]["splits"]["val"] == {"rows": 10, "groups": 10, "labels": {"negative": 5, "positive": 5}}
    assert manifest["facts"]["removed"] == {"duplicates": 0}
    assert manifest["facts"]["sources"] == {"train": {"rows": ROWS, "commit": None}}
    assert manifest["inputs"]["source.parquet"]["sha256"] == sha256(source)
    for name in SPLIT:
        assert manifest["outputs"][name]["sha256"] == sha256(tmp_path / "out" / f"{name}.parquet")
    assert manifest["settings"]["path"] == str(source) and manifest["settings"]["split"]["seed"] == 42
    assert manifest["settings_sha256"] == settings_hash(json.loads(given))
    edited = manifest | {"settings": manifest["settings"] | {"label": "other"}}
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(edited))
    with pytest.raises(UserError, match=r"manifest\.json: its settings were edited"):
        check_manifest(tmp_path / "out" / "manifest.json")
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "out" / "val.parquet").write_bytes(b"changed")
    with pytest.raises(UserError, match=r"val\.parquet: damaged or changed"):
        check_manifest(tmp_path / "out" / "manifest.json")


def test_verify_counts_again(tmp_path, source):
    given = section(path=str(source), group="idx").questions().model_dump_json()
    main(["--settings", given, "--folder", str(tmp_path / "out"), "--sources", str(source)])
    manifest = tmp_path / "out" / "manifest.json"
    assert verify(manifest)["facts"]["splits"]["train"]["rows"] == 20

    def tamper(change, message):
        """Change a split file and its hash in the manifest: only counting again can tell."""
        path = tmp_path / "out" / "val.parquet"
        before, content = path.read_bytes(), json.loads(manifest.read_text())
        pq.write_table(change(pq.read_table(path)), path)
        edited = content | {"outputs": content["outputs"] | {"val": {"path": "val.parquet", "sha256": sha256(path)}}}
        manifest.write_text(json.dumps(edited))
        with pytest.raises(UserError, match=message):
            verify(manifest)
        path.write_bytes(before)
        manifest.write_text(json.dumps(content))

    other = pq.read_table(tmp_path / "out" / "train.parquet")
    tamper(lambda table: table.slice(1), "rows are 9, not 10")
    tamper(lambda table: table.set_column(5, "label", pa.array([0] * 10)), "labels are")
    tamper(lambda table: table.set_column(0, "id", other["id"].slice(0, 10)), "is in train too")
    tamper(lambda table: table.set_column(1, "group", other["group"].slice(0, 10)), "is in train too")
    tamper(lambda table: table.set_column(0, "id", pa.array(["x"] * 10)), "an id appears twice")


def test_a_source_that_changed_since_is_named(tmp_path, source):
    results = tmp_path / "results"
    given = section(path=str(source)).questions().model_dump_json()
    main(["--settings", given, "--folder", str(results / "data" / "rows"), "--sources", str(source)])
    manifest = results / "data" / "rows" / "manifest.json"
    walk = Walk(results)
    walk.visit(manifest, "a test")
    assert walk.broken == [] and list(walk.splits_that_do_not_count()) == []
    save(questions(start=1), source)
    walk = Walk(results)
    walk.visit(manifest, "a test")
    (message,) = walk.broken
    assert message.startswith("data/rows/manifest.json was made from ../source.parquet with hash")


def test_files_behind_a_dataset(source):
    given = section(path=str(source))
    assert source_files(given) == [str(source)]
    assert template_files(given, "training")[0].endswith("workflow/prompts/qnli_training.yaml")
    assert source_files(section(facts={}))[0].endswith("workflow/resources/facts.csv")


def test_settings_survive_the_command_line():
    given = section(facts={}, answers=["No", "Yes"])
    assert type(given.questions()).model_validate_json(given.questions().model_dump_json()) == given.questions()
    rendering = given.rendering("training")
    assert type(rendering).model_validate_json(rendering.model_dump_json()) == rendering
    assert given.questions().pair == "pair" and given.questions().group == "country"


# --- bad data: one clear message each, and nothing is written ---


def with_value(column, row, value):
    def change(rows):
        rows[column] = list(rows[column])
        rows[column][row] = value
        return rows

    return change


BAD_ROWS = {
    "null text": (with_value("sentence", 7, None), {}, "row 7: column 'sentence' is empty"),
    "blank text": (with_value("question", 3, "  \n"), {}, "row 3: column 'question' is empty"),
    "null label": (with_value("label", 5, None), {}, "row 5: column 'label' is empty"),
    "label beyond the mapping": (with_value("label", 9, 2), {}, "row 9: label 2 is not among 0 to 1"),
    "hidden test label": (with_value("label", 9, -1), {}, "row 9: label -1 is not among 0 to 1"),
    "unknown label name": (
        lambda rows: rows | {"label": ["maybe" if n == 4 else "yes" for n in range(ROWS)]},
        {"labels": ["no", "yes"]},
        "row 4: label 'maybe' is not among 0 to 1 or no, yes",
    ),
    "labels that are fractions": (
        lambda rows: rows | {"label": [0.5] * ROWS},
        {},
        "column 'label' is double; labels are integers or names",
    ),
    "one label only": (lambda rows: rows | {"label": [1] * ROWS}, {}, "(0 / 200 by label)"),
    "duplicate ids": (with_value("idx", 11, 3), {"id": "idx"}, "rows 3 and 11: both have the idx 3"),
    "missing label column": (lambda rows: rows, {"label": "target"}, "column 'target' (label) is missing"),
    "missing group column": (lambda rows: rows, {"group": "title"}, "column 'title' (group[0]) is missing"),
    "missing pair column": (lambda rows: rows, {"pair": "couple"}, "column 'couple' (pair) is missing"),
    "missing id column": (lambda rows: rows, {"id": "guid"}, "column 'guid' (id) is missing"),
    "missing field": (
        lambda rows: rows,
        {"columns": {"sentence": "sentence", "question": "ask"}},
        "column 'ask' (columns.question) is missing",
    ),
    "a field called group": (lambda rows: rows | {"group": rows["idx"]}, {}, "a field cannot be called 'group'"),
    "too few rows": (lambda rows: rows, {"split": SPLIT | {"ppo": 171}}, "171 ppo rows are more than"),
    "too few groups": (
        lambda rows: rows | {"article": [n // 100 for n in range(ROWS)]},
        {"group": "article"},
        "200 usable rows in 2 groups",
    ),
    "everything the same text": (
        lambda rows: rows | {"sentence": ["Same!"] * ROWS, "question": ["same"] * ROWS, "idx": [1] * ROWS},
        {},
        "more than 1 usable rows",
    ),
    "no whole pairs": (lambda rows: rows | {"couple": rows["idx"]}, {"pair": "couple"}, "no usable rows are left"),
    "no rows": (lambda rows: {name: values[:0] for name, values in rows.items()}, {}, "no rows"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows(tmp_path, case):
    change, keys, message = BAD_ROWS[case]
    path = save(change(questions()), tmp_path / "rows.parquet")
    given = section(path=str(path), **keys)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        split_dataset(given.questions(), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith((str(path), "split."))  # the file, or the key whose size does not fit
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


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
    "JSON in another encoding": ("rows.jsonl", not_utf8, "rows.jsonl, row 7: column 'sentence' is not UTF-8 text"),
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


PREFLIGHT = [
    name for name in BAD_ROWS if name not in ("null text", "blank text", "duplicate ids", "everything the same text")
]


@pytest.mark.parametrize("case", PREFLIGHT)
@pytest.mark.parametrize("ending", [".parquet", ".jsonl"])
def test_preflight_finds_it_before_anything_runs(tmp_path, case, ending):
    change, keys, message = BAD_ROWS[case]
    if ending == ".jsonl" and case == "no rows":
        message = "empty file"
    path = save(change(questions()), tmp_path / f"rows{ending}")
    with pytest.raises(UserError, match=re.escape(message)):
        check_dataset(section(path=str(path), **keys))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"wordings": {"a": "nowhere"}}, "template 'nowhere': no file"),
        ({"columns": {"sentence": "sentence"}}, "wordings.training: the template uses 'question'"),
        (
            {"facts": {}, "path": None, "split": {"train": 9600, "ppo": 40, "val": 40}},
            "rows are more than 193 countries",
        ),
        ({"facts": {"table": "nowhere.csv"}, "path": None}, "nowhere.csv: no such file"),
    ],
)
def test_preflight_checks_templates_and_facts(source, keys, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check_dataset(section(**({"path": str(source)} | keys)))


def test_preflight_passes_what_works(source):
    check_dataset(section(path=str(source)))
    check_dataset(section(facts={}, split={"train": 1600, "ppo": 2400, "val": 800}))
    check_dataset(section(hub={"id": "nobody/nothing", "revision": "main"}))  # no network is touched


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"facts": None}, "give exactly one of facts, hub, path, mixture (found none)"),
        ({"facts": {}, "path": "a.csv"}, "(found facts and path)"),
        ({"facts": {}, "split": None}, "split is missing"),
        ({"facts": {}, "split": SPLIT | {"tarin": 5}}, "split.tarin: there is no such key"),
        ({"facts": {}, "split": SPLIT | {"train": 0}}, "split.train: Input should be greater than 0"),
        ({"facts": {}, "split": SPLIT | {"train": 21}}, "split.train: 21 rows do not divide into pairs of 2"),
        (
            {"facts": {}, "split": SPLIT | {"val": "rest"}},
            "split.val: `rest` needs a source with a val split of its own",
        ),
        ({"facts": {}, "split": SPLIT | {"recipe": "thesis"}}, "the thesis recipe needs a source with a val split"),
        ({"facts": {}, "answers": ["Yes", "Yes"]}, "give at least two answers, all different"),
        ({"facts": {}, "labels": ["a", "a"]}, "labels must be different"),
        ({"path": {"val": "a.csv"}}, "path.train is missing"),
        ({"catalog": "nothing"}, "catalog: no entry 'nothing'"),
        ({"facts": {}, "wordings": {"a/b": "x"}}, "String should match pattern"),
        ({"facts": {}, "wordings": {"a": {"template": "x", "abuot": "y"}}}, "wordings.a.abuot: there is no such key"),
    ],
)
def test_bad_settings(keys, message):
    with pytest.raises(ValidationError) as caught:
        section(**keys)
    assert message in validation_message(caught.value, DatasetSettings)
