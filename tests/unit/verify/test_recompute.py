"""Every number of the summary comes out again, and a changed one is named."""

import re

import pytest
import recompute as recompute_script
from finished import PLAN, write_results

from elkflow.common.errors import UserError
from elkflow.common.files import read_json, write_json
from elkflow.report.summarise import summarise
from elkflow.verify.recompute import recompute_summary


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_results(folder)
    summarise(PLAN, folder, folder / "summary")
    return folder


@pytest.fixture
def edited(results):
    """A function that edits a file as text until the test ends."""
    before = {}

    def edit(name, old, new):
        path = results / name
        before[path] = path.read_text()
        assert old in before[path]
        path.write_text(before[path].replace(old, new, 1))

    yield edit
    for path, text in before.items():
        path.write_text(text)


def test_all_numbers_come_out_again(results, capsys):
    recompute_script.main(["--results", str(results)])
    printed = capsys.readouterr().out
    assert int(re.search(r"all (\d+) numbers", printed)[1]) > 150
    assert int(re.search(r"(\d+) main numbers", printed)[1]) > 50


def test_a_prettier_number_in_the_verdict_is_found(results):
    verdict = read_json(results / "summary/verdict.json")
    better = verdict | {"evaluations": [row | {"tuned": row["tuned"] + 1e-4} for row in verdict["evaluations"]]}
    write_json(results / "summary/verdict.json", better)
    try:
        with pytest.raises(UserError, match=r"evaluations\[0\]: tuned is 1.0001, its files give 1.0"):
            recompute_summary(results)
    finally:
        write_json(results / "summary/verdict.json", verdict)


def test_a_changed_table_is_found(edited, results):
    edited(
        "summary/comparison.csv",
        "r,0,target,training,training,acc,True,60,0.5",
        "r,0,target,training,training,acc,True,60,0.4",
    )
    with pytest.raises(UserError, match=r"comparison.csv\[0\]: base is 0.4, its files give 0.5"):
        recompute_summary(results)


def test_results_that_are_not_their_samples_are_found(edited, results):
    edited("evaluations/tuned/r/seed1/target/results.json", '"value": 0.9', '"value": 0.95')
    with pytest.raises(UserError, match=r"seed1/target/results.json: training is 0.95, its samples give 0.9"):
        recompute_summary(results)


def test_another_reward_in_the_log_changes_the_trend(edited, results):
    edited("runs/r/seed0/metrics.jsonl", '"reward": 0.5', '"reward": 0.1')
    with pytest.raises(UserError, match=r"trainings\[0\]: reward_trend: start is"):
        recompute_summary(results)
