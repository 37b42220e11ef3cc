"""The script of the summary: its plan comes from a file."""

import pytest
import summarise as script
from finished import PLAN, write_results

from elkflow.common.errors import UserError
from elkflow.common.files import read_json


def arguments(folder):
    return ["--plan", str(folder / "plan.json"), "--results", str(folder), "--output", str(folder / "summary")]


def test_the_plan_in_the_file_is_followed(tmp_path):
    write_results(tmp_path)
    (tmp_path / "plan.json").write_text(PLAN.model_dump_json())
    script.main(arguments(tmp_path))
    assert read_json(tmp_path / "summary" / "manifest.json")["settings"] == PLAN.model_dump(mode="json")
    assert (tmp_path / "summary" / "overview.html").is_file()


@pytest.mark.parametrize(
    ("text", "told"), [("{", "plan.json: "), ('{"groups": 3, "suites": {}, "probes": []}', "plan.json: groups: ")]
)
def test_a_damaged_plan_is_named(tmp_path, text, told):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UserError, match=told):
        script.main(arguments(tmp_path))
