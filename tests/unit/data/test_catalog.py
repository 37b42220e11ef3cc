"""The catalog: every entry on a small file with the hub dataset's schema, through the same code as real rows."""

import re

import datasets
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Features, Value
from tiny import make_checkpoint

from elkflow.config.data import CATALOG, ChatSettings, DatasetSettings
from elkflow.data.check_dataset import check_dataset
from elkflow.data.split_dataset import split_dataset
from elkflow.models.tokens import load_tokenizer
from elkflow.prompts.render_prompts import render_prompts

text, number = Value("string"), Value("int32")
SCHEMAS = {
    "ag_news": {"text": text, "label": ClassLabel(names=["World", "Sports", "Business", "Sci/Tech"])},
    "amazon_polarity": {"label": ClassLabel(names=["negative", "positive"]), "title": text, "content": text},
    "dbpedia_14": {"label": ClassLabel(14), "title": text, "content": text},
    "glue_qnli": {
        "question": text, "sentence": text, "label": ClassLabel(names=["entailment", "not_entailment"]), "idx": number
    },
    "imdb": {"text": text, "label": ClassLabel(names=["neg", "pos"])},
    "piqa": {"goal": text, "sol1": text, "sol2": text, "label": ClassLabel(names=["0", "1"])},
    "super_glue_boolq": {
        "question": text, "passage": text, "idx": number, "label": ClassLabel(names=["False", "True"])
    },
    "super_glue_copa": {
        "premise": text, "choice1": text, "choice2": text, "question": text, "idx": number,
        "label": ClassLabel(names=["choice1", "choice2"]),
    },
    "super_glue_rte": {
        "premise": text, "hypothesis": text, "idx": number, "label": ClassLabel(names=["entailment", "not_entailment"])
    },
}  # fmt: skip
NEGATIVE_FIRST = {"glue_qnli", "super_glue_rte"}  # label 0 means yes there


def rows(name, count, start=0):
    def value(column, kind, n):
        if isinstance(kind, ClassLabel):
            return n % kind.num_classes
        if kind == number:
            return n
        return "cause" if (name, column) == ("super_glue_copa", "question") else f"some {column} of row {n}"

    schema = SCHEMAS[name]
    content = {column: [value(column, kind, n) for n in range(start, start + count)] for column, kind in schema.items()}
    return datasets.Dataset.from_dict(content, features=Features(schema))


def test_the_nine_of_the_thesis_are_there():
    assert {path.stem for path in CATALOG.glob("*.yaml")} == set(SCHEMAS)


@pytest.mark.parametrize("name", SCHEMAS)
def test_an_entry_works_on_its_schema(tmp_path, name):
    paths = {}
    for part, start in (("train", 0), ("val", 10_000)):
        paths[part] = str(tmp_path / f"{part}.parquet")
        rows(name, 140, start).to_parquet(paths[part])
    given = DatasetSettings.model_validate(
        {"catalog": name, "path": paths, "split": {"train": 28, "ppo": 42, "val": 28}}
    )
    assert given.hub is None and given.licence
    check_dataset(given)
    split_dataset(given.questions(), tmp_path / "data")
    splits = {split: tmp_path / "data" / f"{split}.parquet" for split in ("train", "ppo", "val")}
    checkpoint = make_checkpoint(tmp_path / "model", max_position_embeddings=2048)
    rendering = given.rendering(next(iter(given.wordings))).model_copy(update={"one_token": False})
    render_prompts(rendering, ChatSettings(), checkpoint, load_tokenizer(checkpoint), splits, tmp_path / "out")
    asked = {row["id"]: row for row in pq.read_table(splits["val"]).to_pylist()}
    made = pq.read_table(tmp_path / "out" / "val.parquet").to_pylist()
    assert len(made) == 28
    for row in made:
        source = asked[row["id"]]
        expected = 1 - source["label"] if name in NEGATIVE_FIRST else source["label"]
        assert row["label"] == expected
        shown = {column for column in SCHEMAS[name] if isinstance(source.get(column), str)} - {"question"}
        assert all(source[column] in row["prompt"] for column in shown if column in given.wordings or column != "label")


@pytest.mark.parametrize("name", SCHEMAS)
def test_an_entry_names_a_hub_revision_and_is_complete(name):
    given = DatasetSettings.model_validate({"catalog": name})
    assert given.hub is not None and set(given.hub.splits) == {"train", "val"}
    assert re.fullmatch(r"[0-9a-f]{40}", given.hub.revision)
    names = SCHEMAS[name]["label"].names
    assert len(given.labels) == len(names)
    if not names[0].isdigit() and name not in ("super_glue_boolq", "super_glue_copa"):
        assert [label.lower() for label in given.labels] == [label.lower() for label in names]


def test_keys_of_the_config_come_before_those_of_the_catalog():
    given = DatasetSettings.model_validate({"catalog": "imdb", "too_long": "refuse", "wordings": {"w": "catalog:imdb"}})
    assert given.too_long == "refuse" and list(given.wordings) == ["w"] and given.hub.id == "stanfordnlp/imdb"
