"""Reordering of the rows of a long stream, with only a few thousand of them in memory at a time."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa

from elkflow.common.files import BATCH_ROWS

MAX_PILES = 200
"""Temporary files open at once: fewer than systems allow. Beyond `BATCH_ROWS * MAX_PILES` rows the piles grow."""


def reorder(tables: Iterable[pa.Table], rows: np.ndarray, folder: Path) -> Iterator[pa.Table]:
    """Chosen rows of a stream of tables in a given order, as tables of `BATCH_ROWS` rows (or more, see `MAX_PILES`).

    The stream is read once, without random access: each row is written to one of several piles, unnamed files in
    `folder` that vanish with the process, and the piles are sorted one by one.

    Args:
        rows: [n] row numbers in the stream, in the order wanted, each at most once.
    """
    size = max(BATCH_ROWS, -(-len(rows) // MAX_PILES))
    order = np.argsort(rows)  # [n] output positions of the wanted rows, in stream order
    first = done = 0
    with ExitStack() as files:
        piles: list[tuple[IO[bytes], pa.ipc.RecordBatchStreamWriter]] = []
        for table in tables:
            until = int(np.searchsorted(rows, first + len(table), sorter=order))
            places = np.sort(order[done:until])
            taken = table.take(rows[places] - first).append_column("place", pa.array(places))
            if not piles:
                handles = [files.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(0, len(rows), size)]
                piles = [(handle, pa.ipc.new_stream(handle, taken.schema)) for handle in handles]
            bounds = np.searchsorted(places, np.arange(len(piles) + 1) * size)
            for (_, pile), start, end in zip(piles, bounds[:-1], bounds[1:], strict=True):
                if start < end:
                    pile.write_table(taken.slice(start, end - start))
            first, done = first + len(table), until
        for handle, pile in piles:
            pile.close()
            handle.seek(0)
            table = pa.ipc.open_stream(handle).read_all()
            last = table.num_columns - 1  # by number: the source may also have a column called place
            yield table.take(np.argsort(table.column(last).to_numpy())).remove_column(last)
            handle.close()
