"""The workflow as a user drives it: finished once on tiny models, then asked what it would do next."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import yaml
from mixed import mixed_config

from .conftest import planned, snakemake

AFTER_PPO = {"train_ppo", "merge_lora", "evaluate_tuned", "summarise"}


def test_every_stage_left_its_files(finished):
    results = finished / "results"
    (adapter,) = results.glob("runs/*/seed*/adapter/adapter_model.safetensors")
    verdict = json.loads((results / "summary/verdict.json").read_text())
    assert adapter.stat().st_size > 0
    assert {"task", "run", "seed", "n", "base", "tuned", "difference", "ci_low", "ci_high", "p_value"} <= set(
        verdict["evaluations"][0]
    )
    assert {"probe", "method", "layer", "auroc", "auroc_low", "auroc_high", "accuracy"} <= set(verdict["probes"][0])


def processor_seconds():
    """What ended children have used, which unlike a clock does not count their waiting for others."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_running_again_does_nothing_and_is_quick(finished):
    start = processor_seconds()
    assert "Nothing to be done" in snakemake(finished, "--cores", "2").stdout
    assert processor_seconds() - start < 4


def test_a_thousand_runs_are_planned_within_a_minute(finished, tmp_path):
    """10 learning rates by 10 KL coefficients by 10 clips: 4,000 jobs beside those that are done."""
    config = yaml.safe_load((finished / "config.yaml").read_text())
    (run,) = config["runs"].values()
    run["ppo"] |= {"learning_rate": [1e-4 * (10 + i) for i in range(10)], "clip": [0.1 + 0.02 * i for i in range(10)]}
    run["ppo"]["kl"] = {"coefficient": [0.02 * i for i in range(10)]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    start = processor_seconds()
    told = snakemake(finished, "--dry-run", "--quiet", "rules", "--configfile", str(tmp_path / "config.yaml")).stdout
    assert processor_seconds() - start < 30
    counts = dict(re.findall(r"^(\w+) +(\d+)$", told, re.MULTILINE))
    assert {counts[rule] for rule in ("train_ppo", "merge_lora", "evaluate_tuned", "without_rl")} == {"1000"}
    assert not {"split_dataset", "train_probe", "evaluate_base"} & set(counts)


def test_a_run_that_the_config_does_not_have_is_told(finished):
    asked = snakemake(finished, "--dry-run", "results/runs/other/seed0/adapter", check=False)
    assert asked.returncode and "runs/other: the config has no 'other', only quickstart" in asked.stdout


def test_touching_files_reruns_nothing(finished):
    for file in [*finished.glob("results/**/*"), *Path(__file__).parents[2].glob("workflow/scripts/**/*.py")]:
        if file.is_file():
            file.touch()
    assert planned(finished) == set()


def test_a_changed_file_of_a_local_model_fetches_it_anew(finished):
    file = finished / "model" / "generation_config.json"
    before = file.read_text()
    try:
        file.write_text(before.replace("{", '{\n  "top_k": 7,', 1))
        assert "fetch_model" in planned(finished)
    finally:
        file.write_text(before)
    assert planned(finished) == set()


def test_a_ppo_setting_reruns_ppo_and_what_follows(changed):
    def edit(config):
        (run,) = config["runs"].values()
        run["ppo"]["learning_rate"] *= 2

    plan = changed(edit)
    assert {"train_ppo", "merge_lora", "evaluate_tuned", "summarise"} <= plan
    assert not plan & {"split_dataset", "extract_hiddens", "train_probe", "score_answers", "evaluate_base"}


def test_another_seed_is_trained_and_compared(changed):
    def edit(config):
        (run,) = config["runs"].values()
        run["seeds"] = [0, 1]

    plan = changed(edit)
    assert {"train_ppo", "merge_lora", "evaluate_tuned", "summarise"} <= plan
    assert not plan & {"split_dataset", "train_probe", "score_answers", "evaluate_base"}


def test_an_evaluation_setting_leaves_ppo_alone(changed):
    def edit(config):
        config["evaluation"]["suites"]["target"]["limit"] = 10

    plan = changed(edit)
    assert {"evaluate_base", "evaluate_tuned", "summarise"} <= plan
    assert not plan & {"train_ppo", "merge_lora", "train_probe"}


def test_the_order_of_suites_decides_the_report_only(changed):
    def edit(config):
        suites = config["evaluation"]["suites"]
        config["evaluation"]["suites"] = dict(reversed(suites.items()))

    assert changed(edit) == {"plan", "summarise"}


def test_a_mixture_is_joined_from_what_its_datasets_have_already(finished):
    """Splits and prompts of the finished dataset are taken as they are; those of the other are made."""
    config = yaml.safe_load((finished / "config.yaml").read_text())
    (finished / "mixed.yaml").write_text(yaml.safe_dump(mixed_config(config, finished), sort_keys=False))
    plan = planned(finished, "--configfile", str(finished / "mixed.yaml"))
    assert {"mix_datasets", "mix_prompts", "split_dataset", "render_prompts", "train_probe", "train_ppo"} <= plan
    assert "fetch_model" not in plan
    made = snakemake(
        finished, "--dry-run", "--configfile", str(finished / "mixed.yaml"), "--until", "mix_prompts"
    ).stdout
    assert "dataset=rivers" in made and "dataset=countries" not in made


def test_several_wordings_and_probes_have_their_figures(finished, tmp_path):
    """A second probe under two wordings, each tested on the other's rows: tables, matrix and spread in the summary."""
    folder = Path(shutil.copytree(finished, tmp_path, dirs_exist_ok=True))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    ((name, probe),) = config["probes"].items()
    config["probes"]["second"] = {**probe, "variants": ["held_out"], "transfer": [name]}
    config["probes"][name] = {**probe, "transfer": ["second"]}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    snakemake(folder, "--cores", "2")
    summary = folder / "results" / "summary"
    for figure in ("layers", "reliability", "rewards", "wordings", "transfer"):
        assert (summary / f"{figure}.png").read_bytes()[:4] == b"\x89PNG"
    page = (summary / "probe.html").read_text(encoding="utf-8")
    assert "Does the probe read truth, or its own dataset?" in page and "How much the wording matters" in page
    tested = pd.read_csv(folder / "results" / "probes" / name / "transfer.csv")
    assert set(tested["tested_on"]) == {name, "second"} and set(tested["statistics"]) == {"stored", "own"}
    assert len(pd.read_csv(folder / "results" / "probes" / "second" / "wordings.csv")) == 2
    assert planned(folder) == set()


def test_pushing_without_a_token_stops_before_anything_is_built(finished, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    config = yaml.safe_load((finished / "config.yaml").read_text())
    (dataset,) = config["datasets"].values()
    file = tmp_path / "config.yaml"

    def push(*arguments):
        file.write_text(yaml.safe_dump(config, sort_keys=False))
        return snakemake(finished, "push_datasets", "--configfile", str(file), *arguments, check=False)

    assert "no dataset of the config has a `push_to`" in push("--cores", "1").stdout
    dataset["push_to"] = "me/countries"
    done = push("--cores", "1")
    assert done.returncode == 1 and done.stdout.count("HF_TOKEN is not set; pushing needs a token") == 1
    assert "rule push_dataset:" not in done.stdout and not (finished / "results/pushed").exists()
    monkeypatch.setenv("HF_TOKEN", "very-secret")
    planned_now = push("--dry-run").stdout
    assert "rule push_dataset:" in planned_now and "very-secret" not in planned_now


def test_forcing_ppo_runs_what_follows(finished):
    plan = planned(finished, "--forcerun", "train_ppo")
    assert plan >= AFTER_PPO and not plan & {"extract_hiddens", "train_probe", "fetch_model"}


def test_until_stops_at_the_probe(finished):
    plan = planned(finished, "--forceall", "--until", "train_probe")
    assert "train_probe" in plan and not plan & {"train_ppo", "evaluate_base", "score_answers"}


def test_rule_graph_and_summary(finished):
    assert "train_ppo" in snakemake(finished, "--rulegraph").stdout
    assert "adapter" in snakemake(finished, "--summary").stdout


def test_the_finished_reward_model_answers_as_the_docs_show(finished):
    root = Path(__file__).parents[2]
    snippet = re.search(
        r"```python finished=true\n(.*?)```", (root / "docs" / "reference.md").read_text(), re.DOTALL
    ).group(1)
    environment = os.environ | {"PYTHONPATH": str(root / "workflow" / "scripts")}
    done = subprocess.run(
        [sys.executable, "-c", snippet], cwd=finished, env=environment, capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"tensor\(\[[01]?\.\d*\]\)", done.stdout.strip())


def test_every_score_leads_back_to_the_data_and_every_number_comes_out_again(finished):
    for script, told in (("verify", "every link holds"), ("recompute", "come out again")):
        done = subprocess.run(
            [sys.executable, Path(__file__).parents[2] / "workflow" / "scripts" / f"{script}.py"],
            cwd=finished,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and told in done.stdout, done.stdout + done.stderr


def test_a_report_is_written(finished):
    snakemake(finished, "--report", "report.html")
    text = (finished / "report.html").read_text(encoding="utf-8")
    assert len(text) > 100_000 and "verdict" in text
