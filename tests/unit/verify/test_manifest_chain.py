"""The walk from the verdict to the data: it holds, and every kind of damage is named."""

import shutil

import pandas as pd
import pytest
import verify as script
from finished import PLAN, made

from elkflow.common.errors import UserError
from elkflow.common.files import read_json, read_table, sha256, write_json, write_table
from elkflow.summary.results import manifest_files
from elkflow.verify.manifest_chain import verify_chain


@pytest.fixture
def results(results, tmp_path):
    """A copy with a summary, that a test may change."""
    folder = shutil.copytree(results, tmp_path / "results")
    summarise(folder)
    return folder


def summarise(results):
    write_json(results / "summary/verdict.json", {})
    made(results / "summary", "verdict.json", inputs=list(manifest_files(PLAN, results).values()))


def test_the_chain_reaches_the_data(results, capsys):
    script.main(["--results", str(results)])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "summary/manifest.json"
    assert {"data/d/manifest.json", "models/m/manifest.json", "rewards/p/d/val.manifest.json"} <= set(printed)
    assert "every link holds" in printed[-1]


def change(path, row, column, value):
    table = read_table(path).to_pandas()
    table.loc[row, column] = value
    write_table(table, path)


def test_a_changed_row_of_the_data_is_found(results):
    change(results / "data/d/val.parquet", 3, "group", "another")
    with pytest.raises(UserError, match=r"data/d/manifest.json describes data/d/val.parquet with hash"):
        verify_chain(results)


def test_a_rerun_that_was_not_followed_is_found(results):
    """A manifest that was replaced together with its artefact: the link from what was made of it breaks."""
    path = results / "runs/r/seed1/manifest.json"
    write_json(path, read_json(path) | {"seed": 99})
    with pytest.raises(
        UserError, match=r"evaluations/tuned/r/seed1/control/manifest.json was made from runs/r/seed1/man"
    ):
        verify_chain(results)


def test_a_missing_manifest_is_found(results):
    (results / "probes/p/manifest.json").unlink()
    with pytest.raises(
        UserError, match=r"summary/manifest.json was made from probes/p/manifest.json, which is missing"
    ):
        verify_chain(results)


def test_a_missing_output_is_found(results):
    (results / "models/m/checkpoint/config.json").unlink()
    with pytest.raises(UserError, match=r"models/m/manifest.json describes models/m/checkpoint"):
        verify_chain(results)


def test_states_that_are_not_kept_may_be_missing(results):
    folder, prompts = results / "hiddens/m/d/training", results / "prompts/m/d/training/val.parquet"
    folder.mkdir(parents=True)
    (folder / "val.safetensors").write_bytes(b"states")
    states = made(folder, "val.safetensors", inputs=[prompts], name="val.manifest.json")
    (folder / "val.safetensors").unlink()
    probe = results / "probes/p/manifest.json"
    entry = {"path": "../../hiddens/m/d/training/val.manifest.json", "sha256": sha256(states)}
    write_json(probe, read_json(probe) | {"inputs": {"states": entry}})
    with pytest.raises(UserError) as error:  # the probe's manifest was edited, so the links to it break; no other does
        verify_chain(results)
    assert "was made from probes/p/manifest.json" in str(error.value) and "hiddens" not in str(error.value)


def test_an_answer_to_a_question_that_is_not_in_the_data_is_found(results):
    """Every hash agrees, but one label is not the data's."""
    folder = results / "evaluations/base/m/d/target"
    change(folder / "samples.parquet", 5, "label", 0)
    made(folder, "results.json", "samples.parquet", inputs=[results / "models/m/manifest.json"])
    summarise(results)
    with pytest.raises(
        UserError, match=r"task training: question q5 \(label 0\) is no row of prompts/m/d/training/val"
    ):
        verify_chain(results)


def test_a_file_nobody_describes_is_found(results):
    stray = results / "rewards/p/d/extra.parquet"
    write_table(pd.DataFrame({"id": ["a"]}), stray)
    made(results / "rewards/p/d", "val.parquet", inputs=[stray], name="val.manifest.json")
    with pytest.raises(UserError, match=r"rewards/p/d/extra.parquet, an input of .*: no manifest describes it"):
        verify_chain(results)


def test_baselines_without_training_and_fresh_probes_are_links_too(results):
    plan = PLAN.model_copy(update={"without_rl": True, "fresh_probe": True})
    (results / "evaluations/without_rl").mkdir()
    (results / "evaluations/without_rl/r.csv").write_text("run\nr\n")
    rewards = results / "rewards/p/d/val.manifest.json"
    made(results / "evaluations/without_rl", "r.csv", inputs=[rewards], name="r.manifest.json")
    for seed in (0, 1):
        folder = results / f"runs/r/seed{seed}"
        write_json(folder / "fresh_probe.json", {})
        made(folder, "fresh_probe.json", inputs=[results / "probes/p/manifest.json"], name="fresh_probe.manifest.json")
    made(results / "summary", "verdict.json", inputs=list(manifest_files(plan, results).values()))
    wanted = {"evaluations/without_rl/r.manifest.json", "runs/r/seed1/fresh_probe.manifest.json"}
    assert wanted <= set(verify_chain(results))
    (results / "evaluations/without_rl/r.csv").write_text("run\nanother\n")
    with pytest.raises(UserError, match=r"r.manifest.json describes evaluations/without_rl/r.csv with hash"):
        verify_chain(results)


def follow(results, data):
    """Make everything after a changed data manifest agree with it again."""
    for wording in ("training", "held_out"):
        inputs = [data, results / "models/m/manifest.json"]
        made(results / f"prompts/m/d/{wording}", "val.parquet", inputs=inputs)
    summarise(results)


def test_a_split_that_shares_rows_with_another_is_found(results):
    """Every hash agrees: only counting the rows again can tell."""
    path = results / "data/d/train.parquet"
    change(path, 4, "id", "q4")
    data = results / "data/d/manifest.json"
    content = read_json(data)
    content["outputs"]["train"]["sha256"] = sha256(path)
    write_json(data, content)
    follow(results, data)
    with pytest.raises(UserError, match=r"data/d/val\.parquet: id 'q4' is in train too"):
        verify_chain(results)


def test_answers_may_be_in_another_order_than_labels(results):
    """As in QNLI, whose label 0 means yes. One row that goes against the others is found."""
    path = results / "prompts/m/d/held_out/val.parquet"
    data = results / "data/d/val.parquet"
    table = read_table(data).to_pandas()
    write_table(table.assign(label=1 - table["label"]), data)
    manifest = results / "data/d/manifest.json"
    content = read_json(manifest)
    content["outputs"]["val"]["sha256"] = sha256(data)
    write_json(manifest, content)
    follow(results, manifest)
    verify_chain(results)
    change(path, 9, "label", 0)
    follow(results, manifest)
    with pytest.raises(UserError, match=r"question q9 .* is no row of"):
        verify_chain(results)
