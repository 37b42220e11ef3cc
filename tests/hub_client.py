"""The workflow's scripts against the hub of `hub_server`, each in a process of its own; and what they find there."""

import io
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq

from elkflow.common.paths import SCRIPTS

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
