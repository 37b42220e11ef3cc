"""Streams of rows reordered on disk."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st

from elkflow.common.paths import SCRIPTS
from elkflow.data import reorder as module
from elkflow.data.reorder import reorder
from elkflow.data.sources import read_batches


def rows(count):
    numbers = range(count)
    return pa.table(
        {
            "place": [f"row {n}" for n in numbers],
            "list": [[n, n + 1] if n % 3 else None for n in numbers],
            "number": pa.array([n / 2 if n % 5 else None for n in numbers]),
        }
    )


def pieces(table, sizes):
    start = 0
    for size in sizes:
        yield table.slice(start, size)
        start += size
    yield table.slice(start)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 200),
    sizes=st.lists(st.integers(0, 60), max_size=6),
    seed=st.integers(0, 10**6),
    share=st.floats(0.01, 1),
    batch=st.integers(1, 50),
    piles=st.integers(1, 9),
)
def test_it_is_what_take_gives(tmp_path_factory, count, sizes, seed, share, batch, piles):
    table = rows(count)
    wanted = np.random.default_rng(seed).permutation(count)[: max(1, int(share * count))]
    folder = tmp_path_factory.mktemp("piles")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BATCH_ROWS", batch)
        patch.setattr(module, "MAX_PILES", piles)
        made = list(reorder(pieces(table, sizes), wanted, folder))
    assert len(made) <= piles
    assert pa.concat_tables(made).to_pylist() == table.take(wanted).to_pylist()
    assert not list(folder.iterdir())


# --- where the rows are read from ---


def saved(tmp_path, count=25_000, shards=3):
    Dataset(rows(count)).save_to_disk(tmp_path / "rows", num_shards=shards)
    return Dataset.load_from_disk(tmp_path / "rows")


VIEWS = {
    "whole": lambda data: data,
    "slice": lambda data: Dataset(data.data.slice(100, 11_000)),
    "other order": lambda data: data.shuffle(seed=1),
    "part": lambda data: data.select(range(500, 12_500)),
    "twice": lambda data: concatenate_datasets([data, data]),
    "side by side": lambda data: concatenate_datasets(
        [data.select_columns("place"), data.remove_columns("place")], axis=1
    ),
    "in memory": lambda data: Dataset(rows(100)),
}  # fmt: skip


@pytest.mark.parametrize("view", VIEWS)
def test_batches_are_the_rows_however_they_are_stored(tmp_path, view):
    data = VIEWS[view](saved(tmp_path))
    found = list(read_batches(data, ["number", "place"]))
    assert all(table.column_names == ["number", "place"] for table in found)
    assert all(len(table) <= 11_000 for table in found)
    together = pa.concat_tables(found)
    assert together["place"].to_pylist() == data["place"][:] and together["number"].to_pylist() == data["number"][:]


MEASURE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from elkflow.data.split_dataset import split_dataset
from elkflow.config.data import QuestionSettings
import pandas, datasets, scipy.sparse.csgraph
rows = int(sys.argv[3])
sizes = {"train": rows // 10, "ppo": rows // 2, "val": rows // 20}
settings = {"path": sys.argv[2], "group": "sentence", "split": sizes}
split_dataset(QuestionSettings.model_validate(settings), Path(sys.argv[2]).parent / f"out{rows}")
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_a_split_of_many_rows_needs_little_more_memory_than_one_of_few(tmp_path):
    """No text stays in memory: 290,000 more rows of 150 bytes are 44 MB of text, twice that with the source mapped."""
    peaks = {}
    for count in (10_000, 300_000):
        numbers = np.arange(count)
        table = {
            "sentence": [f"The {n // 3}th river of the atlas runs for {n // 3 * 7 % 5003} miles." for n in numbers],
            "question": [f"How long is river {n // 3}, as seen in version {n} of the question?" for n in numbers],
            "label": numbers % 2,
        }
        path = tmp_path / f"{count}.parquet"
        pq.write_table(pa.table(table), path)
        command = [sys.executable, "-c", MEASURE, str(SCRIPTS), str(path), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[count] = int(done.stdout) / 1024
    assert peaks[300_000] - peaks[10_000] < 40
