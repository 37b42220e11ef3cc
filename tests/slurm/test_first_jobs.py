"""The first jobs on a real Slurm: what every `make test` can afford."""

from elkflow.orchestration.slurm import failures


def test_jobs_ask_for_what_the_profile_says(begun, cluster):
    assert set(begun.jobs()) == {"rule_split_dataset/countries", "rule_render_prompts/smollm2_countries_training"}
    facts = cluster.facts(begun.jobs()["rule_split_dataset/countries"])
    asked = {name: facts[name] for name in ("Partition", "NumCPUs", "MinMemoryNode", "TimeLimit", "JobState")}
    assert asked == {
        "Partition": "cpu",
        "NumCPUs": "1",
        "MinMemoryNode": "8000M",
        "TimeLimit": "01:00:00",
        "JobState": "COMPLETED",
    }
    assert facts["JobName"].startswith("elkflow")


def test_a_job_killed_for_memory_succeeds_with_more(begun, folder):
    """Nobody helped: the profile asks for more with each attempt."""
    (failure,) = failures(begun.text)
    assert (failure.rule, failure.state) == ("render_prompts", "FAILED")
    assert "exceeded memory limit" in failure.reason
    assert (folder / failure.logs[1]).name == f"{failure.job}.log"
    assert begun.jobs()["rule_render_prompts/smollm2_countries_training"] != failure.job
