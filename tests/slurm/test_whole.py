"""The workflow on a real Slurm, from the data to the verdict and the report."""

import json

from .conftest import SLOW, Run

pytestmark = SLOW


def test_whole_workflow_reaches_the_verdict(finished, folder):
    verdict = json.loads((folder / "results" / "summary" / "verdict.json").read_text())
    assert verdict["evaluations"] and verdict["probes"]
    submitted = {name.split("/")[0] for name in finished.jobs()}
    assert {"rule_extract_hiddens", "rule_train_probe", "rule_train_ppo", "rule_merge_lora"} <= submitted
    assert "rule_fetch_model" not in submitted, "compute nodes often have no network"


def test_ppo_ran_as_two_processes_of_one_job_with_two_gpus(finished, folder):
    job = finished.jobs()["rule_train_ppo/quickstart_0"]
    facts = finished.cluster.facts(job)
    assert (facts["Partition"], facts["NumTasks"], facts["TresPerJob"]) == ("gpu", "1", "gres:gpu:2")
    manifest = folder / "results/runs/quickstart/seed0/manifest.json"
    assert json.loads(manifest.read_text())["facts"]["processes"] == 2


def test_running_again_submits_nothing(finished, cluster, folder):
    again = Run(cluster, folder, finished.profile, finished.arguments).start()
    assert again.finish() == 0 and "Nothing to be done" in again.text and not again.jobs()


def test_report_is_written(finished, cluster, folder):
    run = Run(cluster, folder, finished.profile, finished.arguments).start("--report", "report.html")
    assert run.finish() == 0, run.text
    assert (folder / "report.html").stat().st_size > 100_000


def test_four_scoring_shards_run_side_by_side_and_merge_to_the_same_bytes(finished, cluster, folder):
    whole = folder / "results/rewards/truth/countries/ppo.parquet"
    before = whole.read_bytes()
    whole.unlink()
    run = Run(cluster, folder, finished.profile, finished.arguments)
    run.start("--set-scatter", "scoring=4", "--", str(whole.relative_to(folder)))
    assert run.finish() == 0, run.text
    shards = [job for name, job in run.jobs().items() if name.startswith("rule_score_shard/")]
    assert len(shards) == 4
    assert whole.read_bytes() == before
    facts = [cluster.facts(job) for job in shards]
    last, first = max(job["StartTime"] for job in facts), min(job["EndTime"] for job in facts)
    assert last < first, "one after another, not side by side"
    again = Run(cluster, folder, finished.profile, finished.arguments)
    again.start("--", str(whole.relative_to(folder)))  # in one piece, as other tests take it to be
    assert again.finish() == 0, again.text
    assert whole.read_bytes() == before
