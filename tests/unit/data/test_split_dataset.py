"""From a source to split files: ids, groups, labels, and every kind of bad row."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from labelled_rows import BAD_ROWS, ROWS, SPLIT, questions, run, save, section
from pydantic import ValidationError
from split_dataset import main

from elkflow.common.errors import UserError, validation_message
from elkflow.common.files import sha256
from elkflow.common.manifests import check_manifest, settings_hash
from elkflow.config.data import DatasetSettings
from elkflow.data.split_dataset import split_dataset
from elkflow.orchestration.rule_inputs import source_files, template_files
from elkflow.verify.manifest_chain import ManifestWalk
from elkflow.verify.split_counts import verify_split


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
    assert manifest["inputs"][str(source)]["sha256"] == sha256(source)
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
    assert verify_split(manifest)["facts"]["splits"]["train"]["rows"] == 20

    def tamper(change, message):
        """Change a split file and its hash in the manifest: only counting again can tell."""
        path = tmp_path / "out" / "val.parquet"
        before, content = path.read_bytes(), json.loads(manifest.read_text())
        pq.write_table(change(pq.read_table(path)), path)
        edited = content | {"outputs": content["outputs"] | {"val": {"path": "val.parquet", "sha256": sha256(path)}}}
        manifest.write_text(json.dumps(edited))
        with pytest.raises(UserError, match=message):
            verify_split(manifest)
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
    walk = ManifestWalk(results)
    walk.visit(manifest, "a test")
    assert walk.broken == [] and list(walk.wrong_splits()) == []
    save(questions(start=1), source)
    walk = ManifestWalk(results)
    walk.visit(manifest, "a test")
    (message,) = walk.broken
    assert message.startswith("data/rows/manifest.json was made from ../source.parquet with hash")


def test_files_behind_a_dataset(source):
    given = section(path=str(source))
    assert source_files(given) == [str(source)]
    assert template_files(given, "training")[0].endswith("workflow/prompts/qnli_training.yaml")
    assert source_files(section(facts={}))[0].endswith("workflow/resources/countries.csv")


def test_settings_survive_the_command_line():
    given = section(facts={}, answers=["No", "Yes"])
    assert type(given.questions()).model_validate_json(given.questions().model_dump_json()) == given.questions()
    rendering = given.rendering("training")
    assert type(rendering).model_validate_json(rendering.model_dump_json()) == rendering
    assert given.questions().pair == "pair" and given.questions().group == "country"


# --- bad data: one clear message each, and nothing is written ---


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


def test_rows_that_the_wordings_read_alike_are_duplicates_whatever_else_differs(tmp_path):
    rows = questions() | {"url": [f"https://example.org/{n}" for n in range(ROWS)]}
    for n in (0, 1):
        rows["sentence"][n], rows["question"][n] = rows["sentence"][n + 5], rows["question"][n + 5]
    rows["sentence"][2] = rows["sentence"][7]  # the same to a wording that reads the sentence alone
    given = section(path=str(save(rows, tmp_path / "rows.parquet")), split={"train": 100, "ppo": 86, "val": 8})
    found = {
        reads: split_dataset(given.questions(), tmp_path, [each.split(",") for each in reads])["removed"]["duplicates"]
        for reads in ((), ("question,sentence",), ("sentence",), ("question", "sentence,url"))
    }
    assert found[()] == 0, "a column that nothing reads told them apart"
    assert found[("question,sentence",)] == 2
    assert found[("sentence",)] == 3
    assert found[("question", "sentence,url")] >= 2, "the same in one wording is enough"


def test_a_value_that_no_wording_reads_may_be_missing(tmp_path):
    rows = questions() | {"note": [None if n % 3 else "seen" for n in range(ROWS)]}
    given = section(path=str(save(rows, tmp_path / "rows.parquet"))).questions()
    with pytest.raises(UserError, match="column 'note' is empty"):
        split_dataset(given, tmp_path)
    facts = split_dataset(given, tmp_path, [["question", "sentence"]])
    assert facts["splits"]["train"]["rows"] == SPLIT["train"]
    assert None in pq.read_table(tmp_path / "train.parquet")["note"].to_pylist()
