"""Mixtures: every row once and traceable, members interleaved, and metrics of each member."""

import copy

import mix_datasets as script
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from mixed import mixed_config
from planted import labels_of, pair_states, train, write_split
from workspace import tiny_config

from elkflow.common.errors import UserError
from elkflow.common.files import read_json, write_table
from elkflow.common.manifests import write_manifest
from elkflow.config.config import Config
from elkflow.data.mix_datasets import interleave, mix_datasets
from elkflow.publish.dataset_card import dataset_card
from elkflow.verify.split_counts import verify_split

SPLITS = ("train", "ppo", "val")


def member(folder, name, sizes, facts=None, settings=None, **columns):
    """A folder of split files and their manifest, with text columns made from row numbers."""
    rows = {}
    for split, size in zip(SPLITS, sizes, strict=True):
        table = {"id": [f"{split}-{n}" for n in range(size)], "group": [f"g{split}{n // 2}" for n in range(size)]}
        table |= {column: [value(n) for n in range(size)] for column, value in columns.items()}
        rows[split] = pd.DataFrame(table | {"label": [n % 2 for n in range(size)]})
        write_table(rows[split], folder / name / f"{split}.parquet")
    outputs = {split: folder / name / f"{split}.parquet" for split in SPLITS}
    write_manifest(
        folder / name / "manifest.json", outputs=outputs, inputs={}, settings=settings or {}, **(facts or {})
    )
    return rows


def run(folder, names):
    manifests = [str(folder / name / "manifest.json") for name in names]
    script.main(["--names", *names, "--manifests", *manifests, "--folder", str(folder / "mixed")])
    return {split: pq.read_table(folder / "mixed" / f"{split}.parquet").to_pandas() for split in SPLITS}


def test_every_row_is_there_once_in_its_members_order(tmp_path):
    a = member(tmp_path, "a", (12_000, 40, 10), text=lambda n: f"a {n}", idx=lambda n: n)
    b = member(tmp_path, "b", (300, 10, 10), sentence=lambda n: f"b {n}", idx=lambda n: f"no. {n}")
    mixed = run(tmp_path, ["a", "b"])
    for split, table in mixed.items():
        assert table.columns.tolist() == ["id", "group", "text", "idx", "label", "sentence", "original_dataset"]
        assert table["id"].is_unique
        for name, source, lacks in (("a", a, "sentence"), ("b", b, "text")):
            own = table[table["original_dataset"] == name].reset_index(drop=True)
            assert own["id"].tolist() == [f"{name}/{key}" for key in source[split]["id"]]
            assert own["group"].tolist() == [f"{name}/{key}" for key in source[split]["group"]]
            assert own["idx"].tolist() == source[split]["idx"].astype(str).tolist()
            assert own["label"].tolist() == source[split]["label"].tolist()
            assert own[lacks].isna().all()
    facts = verify_split(tmp_path / "mixed" / "manifest.json")["facts"]["splits"]["train"]
    assert facts["rows"] == 12_300 and facts["groups"] == 6_150 and facts["labels"] == {"0": 6_150, "1": 6_150}
    assert facts["datasets"] == {"a": 12_000, "b": 300}
    text = dataset_card("both", None, tmp_path / "mixed" / "manifest.json")
    assert "Source: the datasets a, b" in text and "| val | 20 | 10 | 0: 10, 1: 10 |" in text


def test_a_member_can_be_cut_out_again(tmp_path, config):
    """From the files, by the column of member names; in a config by its name, next to the mixture."""
    rows = member(tmp_path, "a", (50, 40, 10), text=lambda n: f"a {n}")
    member(tmp_path, "b", (30, 10, 10), text=lambda n: f"b {n}")
    for split, table in run(tmp_path, ["a", "b"]).items():
        own = table[table["original_dataset"] == "a"].drop(columns="original_dataset").reset_index(drop=True)
        own = own.assign(id=own["id"].str.removeprefix("a/"), group=own["group"].str.removeprefix("a/"))
        pd.testing.assert_frame_equal(own[rows[split].columns], rows[split], check_dtype=False)
    (settings,) = config["runs"].values()
    settings["dataset"] = "rivers"  # its probe stays that of the mixture
    loaded = Config.load(config)
    ((_, one),) = loaded.runs.items()
    assert one.dataset == "rivers" and loaded.probes[one.probe].dataset == "both"


def test_any_beginning_is_a_fair_sample():
    order = interleave([900, 90, 10])
    assert np.bincount(order).tolist() == [900, 90, 10]
    for rows in (100, 250, 700):
        assert np.bincount(order[:rows], minlength=3) == pytest.approx(np.array([0.9, 0.09, 0.01]) * rows, abs=1)
    assert interleave([2, 2]).tolist() == [0, 1, 0, 1]


def test_prompts_keep_their_templates_name(tmp_path):
    for name in ("a", "b"):
        about = {"prompts": {"wording": {"about": "x", "template": "t"}}, "chat": {"chat": False}}
        columns = {"prompt": str, "answers": lambda n: ["No", "Yes"], "question_id": str, "answer_index": lambda n: 0}
        member(tmp_path, name, (4, 4, 4), {"template": f"template of {name}"}, about, **columns)
    table = run(tmp_path, ["a", "b"])["val"]
    assert set(zip(table["original_dataset"], table["template_name"], strict=True)) == {
        ("a", "template of a"),
        ("b", "template of b"),
    }
    assert table["question_id"].tolist()[:2] == ["a/0", "b/0"]
    settings = read_json(tmp_path / "mixed" / "manifest.json")["settings"]
    assert settings["mixture"] == ["a", "b"] and settings["prompts"]["wording"]["template"] == "t"


def test_a_missing_or_damaged_member_is_named(tmp_path):
    member(tmp_path, "a", (4, 4, 4))
    member(tmp_path, "b", (4, 4, 4))
    (tmp_path / "b" / "ppo.parquet").write_bytes(b"PAR1 of another kind")
    with pytest.raises(UserError, match=r"b/ppo\.parquet: damaged or changed"):
        run(tmp_path, ["a", "b"])
    with pytest.raises(UserError, match=r"b/ppo\.parquet: not a readable parquet file"):
        mix_datasets({"a": tmp_path / "a", "b": tmp_path / "b"}, tmp_path / "mixed")
    assert not (tmp_path / "mixed" / "ppo.parquet").exists()


def test_a_probe_is_reported_on_each_member(tmp_path):
    """The truth is planted in only half of the rows, one of two datasets."""
    splits = []
    for seed, (name, size) in enumerate((("train", 320), ("val", 240))):
        labels = labels_of(size, seed)
        known = np.arange(size) < size // 2
        with_truth, without = (pair_states(labels, truth=truth, seed=seed) for truth in (3.0, 0.0))
        states = torch.where(torch.tensor(known)[None, :, None, None], with_truth, without)
        split = write_split(tmp_path, name, labels, states)
        table = pq.read_table(split.prompts[0]).to_pandas()
        write_table(table.assign(original_dataset=np.where(known, "known", "unknown")), split.prompts[0])
        splits.append(split)
    probe = train(tmp_path, splits, methods=["logistic"], allow_weak_probe=True)
    found = pd.read_csv(probe / "datasets.csv").set_index("dataset")
    assert found.index.tolist() == ["made_up", "known", "unknown"] and found["rows"].tolist() == [240, 120, 120]
    assert found["auroc_low"]["known"] > 0.85 and found["auroc_low"]["unknown"] < 0.5 < found["auroc_high"]["unknown"]
    assert found["auroc"]["made_up"] == pytest.approx(read_json(probe / "probe.json")["metrics"]["auroc"])


@pytest.fixture
def config(tmp_path):
    return mixed_config(tiny_config(), tmp_path)


def test_a_mixture_has_the_wordings_that_all_have(config):
    config["datasets"]["rivers"]["wordings"]["more"] = "qnli_training"
    loaded = Config.load(config)
    assert loaded.mixtures() == ["both"] and loaded.wordings("both") == ["training", "held_out"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"both": {"mixture": ["rivers"]}}, "name at least two datasets, each once"),
        ({"both": {"mixture": ["rivers", "rivers"]}}, "name at least two datasets, each once"),
        ({"both": {"mixture": ["rivers", "seas"]}}, "datasets.both.mixture: 'seas' is not among countries, rivers"),
        ({"both": {"mixture": ["rivers", "both"]}}, "datasets.both.mixture: 'both' is not among countries, rivers"),
        ({"both": {"mixture": ["countries", "rivers"], "label": "y"}}, "'label' belongs to the datasets it joins"),
        ({"both": {"mixture": ["countries", "rivers"], "path": "a.csv"}}, "(found path and mixture)"),
        ({"rivers": {"wordings": {"other": "qnli_training"}}}, "its datasets have no wording of the same name"),
        ({"rivers": {"wordings": {}}}, "wordings: give at least one"),
        (
            {"rivers": {"wordings": {"training": {"template": "truthfulness:truthful", "about": "qnli_training"}}}},
            "'training' asks about answers in some of its datasets only",
        ),
        (
            {"rivers": {"path": None, "columns": None, "facts": {}, "split": {"train": 4, "ppo": 4, "val": 4}}},
            "'countries' and 'rivers' have the same source",
        ),
    ],
)
def test_mixtures_that_cannot_be(config, change, message):
    config = copy.deepcopy(config)
    for name, keys in change.items():
        merged = keys if name == "both" else config["datasets"][name] | keys
        config["datasets"][name] = {key: value for key, value in merged.items() if value is not None}
    with pytest.raises(UserError) as caught:
        Config.load(config)
    assert message in str(caught.value)
