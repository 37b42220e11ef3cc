"""Looking changes nothing: dry runs, graphs and reports leave the folder as it was; a run puts it in order."""

import os
import re
import shutil
import time
from pathlib import Path

import pytest

from elkflow.common.files import sha256

from .conftest import ROOT, planned, snakemake

LOG = ".snakemake/log"
"""Snakemake itself writes a log here whenever it reads rules, but for `--dry-run`."""
CACHE = {".snakemake/iocache", ".snakemake/iocache/latest.pkl"}
"""Snakemake's own notes of which files there are."""


def snapshot(folder: Path) -> dict[str, tuple]:
    """Kind, time and content of everything below a folder, by its path."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        name, stat = str(path.relative_to(folder)), path.lstat()
        content = sha256(path) if path.is_file() else None
        if "__pycache__" not in path.parts:
            found[name] = (stat.st_mode, stat.st_size if content else None, stat.st_mtime_ns, content)
    return found


@pytest.fixture(scope="module")
def disturbed(finished, tmp_path_factory) -> Path:
    """A finished folder with the lock of a run that was killed and a file from the future."""
    folder = tmp_path_factory.mktemp(
        "disturbed"
    )  # as deep as the finished one: rules know their code by relative paths
    shutil.copytree(finished, folder, dirs_exist_ok=True)
    (folder / ".snakemake" / "locks").mkdir(exist_ok=True)
    for kind in ("input", "output"):
        (folder / ".snakemake" / "locks" / f"0.{kind}.lock").write_text("results/summary/verdict.json\n")
    ahead = time.time() + 3e8
    os.utime(folder / "results" / "probes" / "truth" / "probe.json", (ahead, ahead))
    return folder


@pytest.mark.parametrize(
    ("arguments", "writes"),
    [
        (["--dry-run"], set()),
        (["--dry-run", "--cores", "2", "--forceall"], set()),
        (["--rulegraph"], {LOG}),
        (["--dag"], {LOG}),
        (["--summary"], {LOG}),
        (["--list-rules"], {LOG}),
        (["--lint"], {LOG}),
        (["--report", "report.html"], {LOG, ".", "report.html"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_looking_changes_nothing(disturbed, arguments, writes):
    code = snapshot(ROOT / "workflow")
    before, start = snapshot(disturbed), time.monotonic()
    snakemake(disturbed, *arguments)
    after = snapshot(disturbed)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert {name for name in changed - CACHE if not name.startswith(f"{LOG}/")} <= writes
    assert all(name not in before for name in changed if name.startswith(f"{LOG}/")), "an older log was touched"
    assert snapshot(ROOT / "workflow") == code
    assert time.monotonic() - start < 60


def test_a_run_takes_the_dead_ones_lock_and_brings_times_back(disturbed):
    told = snakemake(disturbed, "--cores", "2", "--forcerun", "summarise").stdout
    assert re.search(r"^\[1/1\]  8 summary    summarise +\d+\.\d s$", told, re.MULTILINE) and "probe truth" in told
    assert len(told.splitlines()) < 30, "a line for each job, and the verdict"
    assert (disturbed / "results" / "summary" / "verdict.json").is_file()
    assert not list((disturbed / ".snakemake" / "locks").glob("*.lock"))
    now = time.time() + 60
    assert not [path for path in (disturbed / "results").rglob("*") if path.lstat().st_mtime > now]
    assert planned(disturbed) == set()
