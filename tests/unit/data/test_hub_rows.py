"""Rows of the hub: pinned revisions, resuming, refusals, offline; the real client against a server on loopback."""

import pyarrow.parquet as pq
import pytest
from hub_client import NEW, OLD, files, parquet, refused, section, split

from elkflow.common.files import sha256
from elkflow.common.manifests import check_manifest


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
