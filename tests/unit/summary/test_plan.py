"""The plan of a sweep fits a command line."""

from types import SimpleNamespace

from elkflow.summary.plan import Plan


def test_a_thousand_runs_are_a_short_plan():
    run = SimpleNamespace(policy="m", probe="p", dataset="d", wording="training", seeds=(0, 1, 2))
    runs = {f"sweep+learning_rate={i}": run for i in range(1000)}
    plan = Plan.of(
        SimpleNamespace(
            runs=runs,
            evaluation=SimpleNamespace(suites={}, fresh_probe=False, without_rl=()),
            probes={
                "p": SimpleNamespace(transfer=[], variants=[]),
                "q": SimpleNamespace(transfer=["p"], variants=["other"]),
            },
            models={"m": SimpleNamespace(licence="apache-2.0"), "unused": SimpleNamespace(licence="mit")},
        )
    )
    assert len(plan.model_dump_json()) < 60_000 and len(plan.trainings()) == 3000
    assert plan.licences == {"m": "apache-2.0"}
    assert plan.transfer == ["q"] and plan.wordings
