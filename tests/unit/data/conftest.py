"""A small labelled dataset as a file."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from labelled_rows import questions


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.parquet"
    pq.write_table(pa.table(questions()), path)
    return path
