"""Every writer, killed before every one of its lines, with a full disk, and without permission to write."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from elkflow.common import files, manifests
from elkflow.common.errors import UserError

from .interrupt import every_line

ROWS = {"old": 3, "new": 2000}


def write_json(path: Path, version: str) -> None:
    files.write_json(path, {"version": version, "numbers": list(range(ROWS[version]))})


def read_json(path: Path) -> str:
    content = json.loads(path.read_text())
    assert content["numbers"] == list(range(ROWS[content["version"]]))
    return content["version"]


def write_table(path: Path, version: str) -> None:
    files.write_table(
        pd.DataFrame({"version": version, "random": np.random.default_rng(0).random(ROWS[version])}), path
    )


def read_table(path: Path) -> str:
    column = files.read_table(path)["version"].to_pylist()
    assert len(column) == ROWS[column[0]]
    return column[0]


def write_tensors(path: Path, version: str) -> None:
    with files.atomic(path) as temporary:
        save_file({"x": np.arange(ROWS[version])}, temporary, metadata={"version": version})


def read_tensors(path: Path) -> str:
    with safe_open(str(path), "np") as handle:
        version = handle.metadata()["version"]
    assert load_file(path)["x"].tolist() == list(range(ROWS[version]))
    return version


def write_folder(path: Path, version: str) -> None:
    with files.atomic(path) as temporary:
        (temporary / "inner").mkdir(parents=True)
        (temporary / "version").write_text(version)
        for index in range(3):
            (temporary / "inner" / str(index)).write_text(version)


def read_folder(path: Path) -> str:
    version = (path / "version").read_text()
    assert [(path / "inner" / str(index)).read_text() for index in range(3)] == [version] * 3
    return version


def write_manifest(path: Path, version: str) -> None:
    made = path.with_name("made.txt")
    files.write_text(made, version)
    manifests.write_manifest(
        path, outputs={"made": made}, inputs={}, settings={"version": version, "rows": list(range(ROWS[version]))}
    )


def read_manifest(path: Path) -> str:
    """A manifest that survived a kill is whole, and says so if its output is of another time."""
    version = json.loads(path.read_text())["settings"]["version"]
    if path.with_name("made.txt").read_text() == version:
        manifests.check_manifest(path)
    else:
        with pytest.raises(UserError, match=r"made\.txt: damaged or changed"):
            manifests.check_manifest(path)
    return version


WRITERS = {
    "json": (write_json, read_json),
    "table": (write_table, read_table),
    "tensors": (write_tensors, read_tensors),
    "folder": (write_folder, read_folder),
    "manifest": (write_manifest, read_manifest),
}


@pytest.mark.parametrize("older", [False, True], ids=["first", "replacing"])
@pytest.mark.parametrize("name", WRITERS)
def test_killed_before_any_line_a_file_is_old_or_new_or_absent(tmp_path, name, older, tally):
    write, read = WRITERS[name]
    target = tmp_path / "target"
    kills = 0
    if older:
        write(target, "old")
    for _ in every_line(lambda: write(target, "new"), step=3 if name == "manifest" else 1):
        kills += 1
        if target.exists():
            found = read(target)
            assert found in ("old", "new") and (older or found == "new")
            if older and found == "new":
                write(target, "old")
        else:
            assert not older or name == "folder"  # between the two renames a folder may be absent, never partial
    assert read(target) == "new"
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")], "leftovers of killed writers"
    assert kills >= 15
    tally[f"writer {name}: SIGKILL"] += kills


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    """A file system of 256 KiB; where mounting is not allowed, a limit on file sizes stands in (see `full`)."""
    folder = tmp_path_factory.mktemp("disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting a tmpfs is not allowed here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("free", [0, 4096])
def test_a_full_disk_leaves_the_old_file(small_disk, name, free, tally):
    write, read = WRITERS[name]
    target = small_disk / "target"
    write(target, "old")
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as handle, pytest.raises(OSError):
        while True:
            handle.write(bytes(4096))
    os.truncate(filler, filler.stat().st_size - free)
    with pytest.raises((OSError, SafetensorError), match=r"No space left|os error 28|Errno 28"):
        write(target, "new")
        filler.touch()
    assert read(target) == "old"
    filler.unlink()
    write(target, "new")
    assert read(target) == "new"
    assert not [file for file in small_disk.iterdir() if file.name.startswith(".")]
    for file in small_disk.iterdir():
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    tally[f"writer {name}: full disk"] += 1
