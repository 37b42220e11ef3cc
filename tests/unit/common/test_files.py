"""Atomic writing and hashes of files."""

import json

import pandas as pd
import pytest

from elkflow.common import files
from elkflow.common.errors import UserError


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "table.json"
    files.write_json(target, {"old": 1})
    with pytest.raises(RuntimeError), files.atomic(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(target.read_text()) == {"old": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["table.json"]


def test_a_folder_is_replaced_whole(tmp_path):
    target = tmp_path / "model"
    for content in ("first", "second"):
        with files.atomic(target) as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert [file.name for file in target.iterdir()] == ["second"]


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "x.json", {"value": float("nan")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"PAR1 nonsense", b"\x00" * 64])
def test_a_damaged_table_is_named(tmp_path, content):
    path = tmp_path / "rows.parquet"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"rows\.parquet: not a readable parquet"):
        files.read_table(path)


def test_a_missing_column_is_named(tmp_path):
    files.write_table(pd.DataFrame({"id": ["a"]}), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match="column 'label' is missing; it has id"):
        files.read_table(tmp_path / "rows.parquet", ["id", "label"])


def test_a_folder_hash_sees_names_and_contents(tmp_path):
    (tmp_path / "a").write_text("1")
    first = files.sha256(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    second = files.sha256(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({first, second, files.sha256(tmp_path)}) == 3
