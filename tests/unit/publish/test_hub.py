"""The real clients of the hub against a server on loopback: pinned revisions, resuming, refusals, offline, pushing."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hub_server import Hub
from workspace import make_workspace, write_config

from elkflow.common.errors import UserError
from elkflow.common.files import read_json, sha256, write_json
from elkflow.common.manifests import check_manifest, write_manifest
from elkflow.common.paths import SCRIPTS

ROOT = Path(__file__).parents[3]
OLD, NEW = "a" * 40, "b" * 40
CARD = """---
configs:
- config_name: qnli
  data_files:
  - split: train
    path: qnli/train-*
  - split: validation
    path: qnli/validation-*
---
"""


def parquet(words, count):
    rows = {
        "sentence": [f"{words} {n} says {n * n}." for n in range(count)],
        "question": [f"What of {words} {n}?" for n in range(count)],
        "label": [n % 2 for n in range(count)],
    }
    sink = io.BytesIO()
    pq.write_table(pa.table(rows), sink, compression=None, use_dictionary=False)
    return sink.getvalue()


def files(words):
    return {
        "README.md": CARD.encode(),
        "qnli/train-00000-of-00001.parquet": parquet(words, 200),
        "qnli/validation-00000-of-00001.parquet": parquet(f"{words} validation", 60),
    }


@pytest.fixture
def hub():
    with Hub() as server:
        server.add("me/rows", files("old"), OLD)
        server.add("me/rows", files("new"), NEW)
        yield server


def section(revision=OLD, repo="me/rows"):
    return {
        "hub": {"id": repo, "name": "qnli", "revision": revision, "splits": {"train": "train", "val": "validation"}},
        "split": {"train": 20, "ppo": 20, "val": 10},
    }


def script(name, hub, tmp_path, *arguments, **variables):
    """Run a script in a process of its own: the clients read HF_ENDPOINT when they are imported."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment = clean | hub.environment(tmp_path / "home") | variables
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def split(hub, tmp_path, settings, folder="out", **variables):
    given = ["--settings", json.dumps(settings), "--folder", tmp_path / folder]
    return script("split_dataset", hub, tmp_path, *given, **variables)


def refused(done):
    """The one line a user sees."""
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


def test_a_pinned_revision_is_downloaded_once_and_then_found_without_a_network(hub, tmp_path):
    done = split(hub, tmp_path, section(OLD))
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    assert len(rows) == 20 and all(row["sentence"].startswith("old ") for row in rows)
    val = pq.read_table(tmp_path / "out" / "val.parquet").to_pylist()
    assert all(row["sentence"].startswith("old validation ") for row in val)
    facts = check_manifest(tmp_path / "out" / "manifest.json")["facts"]
    assert facts["sources"]["train"] == {"rows": 200, "commit": OLD}
    assert all(NEW not in path for _, path, _ in hub.calls)

    before = len(hub.calls)
    done = split(hub, tmp_path, section(OLD), "again", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert len(hub.calls) == before
    for name in ("train", "ppo", "val"):
        assert sha256(tmp_path / "out" / f"{name}.parquet") == sha256(tmp_path / "again" / f"{name}.parquet")

    message = refused(split(hub, tmp_path, section(NEW), "other", HF_HUB_OFFLINE="1"))
    assert f"the cache has only {OLD}; run `snakemake prefetch`" in message
    assert not (tmp_path / "other").exists()


def test_a_download_that_breaks_off_goes_on_where_it_stopped(hub, tmp_path):
    name, chunk = "qnli/train-00000-of-00001.parquet", 10 * 2**20  # the client keeps whole chunks of ten megabytes
    hub.add("me/rows", files("new") | {name: parquet("long" + "g" * 60_000, 100)}, "e" * 40)
    assert len(hub.repos["me/rows"]["e" * 40][name]) > chunk
    hub.cut[name] = chunk + 1000
    done = split(hub, tmp_path, section("e" * 40))
    assert done.returncode == 0, done.stderr
    ranges = [asked for path, asked in hub.downloads() if path.endswith(name)]
    assert ranges == [None, f"bytes={chunk}-"]


@pytest.mark.parametrize(
    ("settings", "token", "parts"),
    [
        (section(repo="me/nothing"), None, ["hub dataset me/nothing (qnli)", "doesn't exist on the Hub"]),
        (section("c" * 40), None, ["hub dataset me/rows (qnli) at " + "c" * 40]),
        (section(), "secret", ["hub dataset me/rows (qnli)"]),
    ],
    ids=["404", "no such revision", "401"],
)
def test_what_the_hub_refuses_is_told_in_one_line(hub, tmp_path, settings, token, parts):
    hub.token = token
    message = refused(split(hub, tmp_path, settings))
    for part in parts:
        assert part in message
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_what_its_name_says(hub, tmp_path):
    hub.add("me/rows", files("bad") | {"qnli/train-00000-of-00001.parquet": parquet("bad", 200)[:-50]}, "d" * 40)
    message = refused(split(hub, tmp_path, section("d" * 40)))
    assert "hub dataset me/rows (qnli)" in message and "Parquet" in message


def test_prefetch_records_the_commit_behind_a_branch(hub, tmp_path):
    given = ["--datasets", json.dumps({"rows": section("main")}), "--record", tmp_path / "prefetched.json"]
    done = script("prefetch", hub, tmp_path, *given)
    assert done.returncode == 0, done.stderr
    (record,) = read_json(tmp_path / "prefetched.json")["datasets"].values()
    assert record["revision"] == "main" and record["commit"] == NEW
    assert record["rows"] == {"train": 200, "val": 60}
    assert f"'main' is not a commit and can move; to pin these rows, set `revision: {NEW}`" in done.stderr


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
    from elkflow.publish.dataset_card import dataset_card

    text = dataset_card("countries", None, folder / "manifest.json")
    assert "license:" not in text and "Licence of the source: not stated" in text
    content = read_json(folder / "manifest.json")
    content["settings"]["hub"] = {"id": "nyu-mll/glue"}
    write_json(folder / "manifest.json", content)
    assert "nyu-mll/glue" in dataset_card("qnli", "cc-by-sa-4.0", folder / "manifest.json")


def test_without_a_token_nothing_is_pushed(monkeypatch):
    from elkflow.publish.hub import hub_client

    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(UserError, match="HF_TOKEN is not set"):
        hub_client()


def test_a_model_without_a_pinned_commit_is_refused_and_the_hub_asked_for_one(hub, tmp_path):
    """As `config/thesis.yaml` has one."""
    hub.add("me/model", {"config.json": b"{}"}, NEW)
    thesis = yaml.safe_load((ROOT / "config" / "thesis.yaml").read_text(encoding="utf-8"))["models"]["unifiedqa"]
    assert thesis["hub"]["revision"] == "0" * 40
    settings = json.dumps({"hub": {"id": "me/model", "revision": "0" * 40}})
    given = ["--settings", settings, "--checkpoint", tmp_path / "checkpoint", "--manifest", tmp_path / "m.json"]
    message = refused(script("fetch_model", hub, tmp_path, *given))
    assert message.endswith(f"pins no commit yet (`revision` is all zeros); set it to the newest, {NEW}")
    message = refused(script("fetch_model", hub, tmp_path, *given, HF_HUB_OFFLINE="1"))
    assert "the newest could not be looked up" in message and "snakemake prefetch" in message


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A tiny workflow whose model and rows are on the hub."""
    folder = make_workspace(tmp_path_factory.mktemp("prefetch"))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (model,) = config["models"].values()
    del model["path"]
    model["hub"] = {"id": "me/model", "revision": OLD}
    (dataset,) = config["datasets"].values()
    config["datasets"] = {"countries": section(OLD) | {"wordings": dataset["wordings"], "answers": ["No", "Yes"]}}
    write_config(folder / "config.yaml", config)
    return folder


def test_after_prefetch_everything_is_made_without_a_network(hub, workspace, tmp_path):
    checkpoint = workspace / "model"
    hub.add("me/model", {path.name: path.read_bytes() for path in checkpoint.iterdir()}, OLD)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    clean["PATH"] = f"{Path(sys.executable).parent}:{clean['PATH']}"

    def snakemake(*targets, **variables):
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), *targets, "--cores", "1"]
        command += ["--directory", str(workspace), "--configfile", str(workspace / "config.yaml")]
        environment = clean | hub.environment(tmp_path / "home") | variables
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    done = snakemake("prefetch")
    assert done.returncode == 0, done.stderr
    results = workspace / "results"
    assert read_json(results / "prefetched.json")["datasets"]["countries"]["commit"] == OLD
    fetched = results / "models" / "smollm2" / "checkpoint" / "model.safetensors"
    assert sha256(fetched) == sha256(checkpoint / "model.safetensors")
    assert {method for method, path, _ in hub.calls if path.endswith("model.safetensors")} == {"HEAD", "GET"}

    before = len(hub.calls)
    prompts = "results/prompts/smollm2/countries/training/val.parquet"
    done = snakemake(prompts, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert pq.read_table(workspace / prompts).num_rows == 10
    assert len(hub.calls) == before


def fetch(hub, tmp_path, **variables):
    settings = json.dumps({"hub": {"id": "me/model", "revision": OLD}})
    given = ["--settings", settings, "--checkpoint", tmp_path / "checkpoint", "--manifest", tmp_path / "m.json"]
    return script("fetch_model", hub, tmp_path, *given, **variables)


def test_a_model_that_the_hub_refuses_or_breaks_off_leaves_nothing(hub, workspace, tmp_path):
    message = refused(fetch(hub, tmp_path))
    assert message.startswith("error: hub model me/model@aaaaaaaaaaaa: could not be downloaded (404")
    whole = {path.name: path.read_bytes() for path in (workspace / "model").iterdir()}
    hub.add("me/model", whole, OLD)
    hub.token = "secret"
    assert "401 Unauthorized" in refused(fetch(hub, tmp_path))
    assert not (tmp_path / "checkpoint").exists() and not (tmp_path / "m.json").exists()
    hub.token = None
    hub.add("me/model", whole | {"model.safetensors": whole["model.safetensors"][:-100]}, OLD)
    assert "model.safetensors" in refused(fetch(hub, tmp_path))
    assert not (tmp_path / "checkpoint").exists() and not (tmp_path / "m.json").exists()
