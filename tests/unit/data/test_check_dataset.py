"""Checks of a dataset before anything runs."""

import re

import pytest
from labelled_rows import BAD_ROWS, questions, save, section

from elkflow.common.errors import UserError
from elkflow.data.check_dataset import check_dataset

PREFLIGHT = [
    name for name in BAD_ROWS if name not in ("null text", "blank text", "duplicate ids", "everything the same text")
]


@pytest.mark.parametrize("case", PREFLIGHT)
@pytest.mark.parametrize("ending", [".parquet", ".jsonl"])
def test_preflight_finds_it_before_anything_runs(tmp_path, case, ending):
    change, keys, message = BAD_ROWS[case]
    if ending == ".jsonl" and case == "no rows":
        message = "empty file"
    path = save(change(questions()), tmp_path / f"rows{ending}")
    with pytest.raises(UserError, match=re.escape(message)):
        check_dataset(section(path=str(path), **keys))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"wordings": {"a": "nowhere"}}, "template 'nowhere': no file"),
        ({"columns": {"sentence": "sentence"}}, "wordings.training: the template uses 'question'"),
        (
            {"facts": {}, "path": None, "split": {"train": 9600, "ppo": 40, "val": 40}},
            "rows are more than 193 countries",
        ),
        ({"facts": {"table": "nowhere.csv"}, "path": None}, "nowhere.csv: no such file"),
    ],
)
def test_preflight_checks_templates_and_facts(source, keys, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check_dataset(section(**({"path": str(source)} | keys)))


def test_preflight_passes_what_works(source):
    check_dataset(section(path=str(source)))
    check_dataset(section(facts={}, split={"train": 1600, "ppo": 2400, "val": 800}))
    check_dataset(section(hub={"id": "nobody/nothing", "revision": "main"}))  # no network is touched
