"""Splits pushed to a hub on loopback, and loaded again."""

import pyarrow.parquet as pq
import pytest
from hub_client import parquet, refused, script, section, split

from elkflow.common.errors import UserError
from elkflow.common.files import read_json, write_json
from elkflow.common.manifests import write_manifest
from elkflow.publish.dataset_card import dataset_card
from elkflow.publish.hub import hub_client


@pytest.fixture
def folder(tmp_path):
    """Split files and their manifest."""
    path = tmp_path / "data"
    path.mkdir()
    for name in ("train", "ppo", "val"):
        (path / f"{name}.parquet").write_bytes(parquet(name, 10))
    counts = {"rows": 10, "groups": 10, "labels": {"No": 5, "Yes": 5}}
    write_manifest(
        path / "manifest.json",
        outputs={name: path / f"{name}.parquet" for name in ("train", "ppo", "val")},
        inputs={},
        settings={"hub": None, "path": None, "split": {"recipe": "grouped"}},
        removed={"duplicates": 3},
        splits=dict.fromkeys(("train", "ppo", "val"), counts),
    )
    return path


def push(hub, tmp_path, folder, **variables):
    given = ["--name", "countries", "--repo", "me/countries", "--licence", "cc-by-4.0", "--folder", folder]
    return script("push_dataset", hub, tmp_path, *given, "--receipt", tmp_path / "receipt.json", **variables)


def test_pushed_splits_can_be_loaded_again(hub, tmp_path, folder):
    hub.token = "very-secret"
    done = push(hub, tmp_path, folder, HF_TOKEN="very-secret")
    assert done.returncode == 0, done.stderr
    assert "very-secret" not in done.stdout + done.stderr + (tmp_path / "receipt.json").read_text()
    ((repo, pushed),) = hub.commits
    assert repo == "me/countries"
    assert pushed["data/val.parquet"] == (folder / "val.parquet").read_bytes()
    assert read_json(tmp_path / "receipt.json")["repo"] == "me/countries"
    card = pushed["README.md"].decode()
    assert "license: cc-by-4.0" in card and "| val | 10 | 10 | No: 5, Yes: 5 |" in card and "duplicates: 3" in card

    hub.token = None
    settings = section(read_json(tmp_path / "receipt.json")["commit"], "me/countries")
    settings["hub"] |= {"name": "default", "splits": {"train": "train", "val": "val"}}
    settings["split"] = {"train": 4, "ppo": 4, "val": 4}
    done = split(hub, tmp_path, settings)
    assert done.returncode == 0, done.stderr
    assert pq.read_table(tmp_path / "out" / "train.parquet").num_rows == 4


def test_pushing_needs_a_token_a_right_one_and_whole_files(hub, tmp_path, folder):
    assert "HF_TOKEN is not set" in refused(push(hub, tmp_path, folder))
    hub.token = "very-secret"
    message = refused(push(hub, tmp_path, folder, HF_TOKEN="wrong-one"))
    assert "the hub refused me/countries: " in message and "wrong-one" not in message
    (folder / "val.parquet").write_bytes(b"changed")
    assert "val.parquet: damaged or changed" in refused(push(hub, tmp_path, folder, HF_TOKEN="very-secret"))
    assert hub.commits == [] and not (tmp_path / "receipt.json").exists()


def test_the_card_says_where_rows_are_from(folder):
    text = dataset_card("countries", None, folder / "manifest.json")
    assert "license:" not in text and "Licence of the source: not stated" in text
    content = read_json(folder / "manifest.json")
    content["settings"]["hub"] = {"id": "nyu-mll/glue"}
    write_json(folder / "manifest.json", content)
    assert "nyu-mll/glue" in dataset_card("qnli", "cc-by-sa-4.0", folder / "manifest.json")


def test_without_a_token_nothing_is_pushed(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(UserError, match="HF_TOKEN is not set"):
        hub_client()
