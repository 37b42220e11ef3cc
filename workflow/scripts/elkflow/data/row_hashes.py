"""64-bit hashes of rows, equal in every process and on every platform, for datasets too large for memory."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from elkflow.common.files import BATCH_ROWS
from elkflow.data.assignment import scramble


def hash_rows(columns: list[pa.ChunkedArray]) -> np.ndarray:
    """[N] uint64 hash of each row's values: pandas' SipHash with a fixed key."""
    import pandas as pd

    total = np.zeros(len(columns[0]), np.uint64)
    for start in range(0, len(total), BATCH_ROWS):  # pandas hashes Python strings, which take much memory
        here = slice(start, start + BATCH_ROWS)
        for place, column in enumerate(columns):
            part = column.slice(start, BATCH_ROWS)
            values = part.to_numpy(zero_copy_only=False)
            if values.dtype == object and not is_text(part.type):
                values = np.array([repr(value) for value in part.to_pylist()], dtype=object)
            total[here] = scramble(total[here] ^ pd.util.hash_array(values, categorize=False), place)
    return total


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds text."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def normalise_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text in lower case, with everything but letters and digits collapsed to single spaces; other types unchanged."""
    if not is_text(column.type):
        return column
    text = pc.replace_substring_regex(pc.utf8_lower(column), pattern=r"[^\p{L}\p{N}]+", replacement=" ")
    return pc.utf8_trim_whitespace(text)
