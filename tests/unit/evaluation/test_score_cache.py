"""Damaged cache files: the requests are scored again, and no wrong score is served."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from elkflow.common.code_inputs import closure
from elkflow.common.paths import PACKAGE
from elkflow.evaluation import score_cache
from elkflow.evaluation.score_cache import SCORING_MODULE, ScoreCache

REQUESTS = [(("a", "b"), [1, 2], [3]), (("a", "c"), [1], [2, 3])]
SCORES = [(-1.5, True), (-2.25, False)]


@pytest.fixture
def kept(tmp_path):
    store = ScoreCache(tmp_path, {"model": "x"})
    store.put(REQUESTS, SCORES)
    (file,) = tmp_path.rglob("*.json")
    return store, file


@pytest.mark.parametrize("bit", [0, 2, 4, 7])
def test_a_flipped_bit_anywhere_changes_no_score(kept, bit):
    store, file = kept
    whole = file.read_bytes()
    noticed = 0
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        found = store.get(REQUESTS)
        noticed += found is None
        assert found in (None, SCORES)  # a space that became another one is no damage
    assert noticed > len(whole) / 2


def test_a_cut_file_is_asked_again_and_replaced(kept, caplog):
    store, file = kept
    whole = file.read_bytes()
    for length in range(len(whole) - 1):  # the last byte ends the line
        file.write_bytes(whole[:length])
        assert store.get(REQUESTS) is None
    assert f"{file}: damaged; its requests are scored again" in caplog.text
    store.put(REQUESTS, SCORES)
    assert store.get(REQUESTS) == SCORES and file.read_bytes() == whole


def test_answers_are_kept_by_dtype_and_code(tmp_path, monkeypatch):
    requests = [(("a", "b"), [1, 2], [3]), (("a", "c"), [1], [2, 3])]
    store = ScoreCache(tmp_path, {"model": "x", "dtype": "float32"})
    store.put(requests, [(-1.5, True), (-2.25, False)])
    assert store.get(requests) == [(-1.5, True), (-2.25, False)]
    assert store.get(requests[::-1]) is None
    assert store.get([(None, [1], [2, 3]), (None, [1, 2], [3])]) is None
    assert ScoreCache(tmp_path, {"model": "x", "dtype": "bfloat16"}).get(requests) is None
    monkeypatch.setattr(score_cache, "sha256", lambda file: f"edited {file}")
    assert ScoreCache(tmp_path, {"model": "x", "dtype": "float32"}).get(requests) is None


EDITED = """
import json, sys
from pathlib import Path
from elkflow.common.code_inputs import closure
from elkflow.common.paths import PACKAGE
from elkflow.evaluation.score_cache import SCORING_MODULE, ScoreCache

def folder():
    return ScoreCache(Path("answers"), {"model": "x"}).folder.name

found = {"": folder()}
for module in [*sorted({SCORING_MODULE, *closure(SCORING_MODULE)}), PACKAGE / "ppo" / "objective.py"]:
    before = module.read_text()
    module.write_text(before + "# edited\\n")
    found[str(module.relative_to(PACKAGE))] = folder()
    module.write_text(before)
assert folder() == found[""]
print(json.dumps(found))
"""


def test_an_edit_to_any_module_that_scores_forgets_all_scores(tmp_path):
    """Of a copy of the library. What scores is whatever the model of the harness imports, with no list to keep."""
    shutil.copytree(PACKAGE, tmp_path / "elkflow")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", EDITED], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folders = json.loads(done.stdout)
    untouched = folders.pop("")
    assert folders.pop("ppo/objective.py") == untouched, "training computes no score"
    assert set(folders) == {str(path.relative_to(PACKAGE)) for path in {SCORING_MODULE, *closure(SCORING_MODULE)}}
    assert {"batching/tree_attention.py", "evaluation/harness_model.py"} <= set(folders)
    assert untouched not in folders.values() and len(set(folders.values())) == len(folders)
