"""Stage 8: comparison and report.

Needs the answers of base and tuned models, the probes' figures and every step of training.
Makes <results>/summary/: verdict.json, comparison and probes as .csv and .md, and figures as .png and .html.
"""

from elkflow.settings.summary import Plan

PLAN = Plan.of(CONFIG)


def of_trainings(pattern):
    """`pattern` filled with every run, seed and suite, and with the run's own policy, dataset and probe."""
    paths = (
        pattern.format(
            suite=suite, wording=wording, **training.model_dump(exclude={"wording"})
        )
        for training in PLAN.trainings()
        for suite in PLAN.suites
        for wording in CONFIG.evaluation.wordings()
    )
    return list(dict.fromkeys(paths))


rule compare:
    """Base against tuned on every question, beside what the probe knows."""
    input:
        base=of_trainings(
            "<results>/evaluations/base/{policy}/{dataset}/{suite}/results.json"
        ),
        base_samples=of_trainings(
            "<results>/evaluations/base/{policy}/{dataset}/{suite}/samples.parquet"
        ),
        tuned=of_trainings(
            "<results>/evaluations/tuned/{run}/seed{seed}/{suite}/results.json"
        ),
        tuned_samples=of_trainings(
            "<results>/evaluations/tuned/{run}/seed{seed}/{suite}/samples.parquet"
        ),
        prompts=of_trainings(
            "<results>/prompts/{policy}/{dataset}/{wording}/val.parquet"
        ),
        metrics=of_trainings("<results>/runs/{run}/seed{seed}/metrics.jsonl"),
        rewards=of_trainings("<results>/rewards/{probe}/{dataset}/val.parquet"),
        probes=expand("<results>/probes/{probe}/probe.json", probe=PLAN.probes),
        layers=expand("<results>/probes/{probe}/layers.csv", probe=PLAN.probes),
        controls=expand("<results>/probes/{probe}/controls.csv", probe=PLAN.probes),
        lineage=of_trainings(
            "<results>/evaluations/base/{policy}/{dataset}/{suite}/manifest.json"
        )
        + of_trainings(
            "<results>/evaluations/tuned/{run}/seed{seed}/{suite}/manifest.json"
        )
        + expand("<results>/probes/{probe}/manifest.json", probe=PLAN.probes),
        script=script_path("compare"),
        code=imports("compare"),
    output:
        verdict=ensure("<results>/summary/verdict.json", non_empty=True),
        comparison=report(
            "<results>/summary/comparison.csv",
            caption="../report/comparison.rst",
            category="3 Evaluation",
            labels={"what": "Every task, base against tuned", "kind": "table"},
        ),
        comparison_text="<results>/summary/comparison.md",
        probes=report(
            "<results>/summary/probes.csv",
            caption="../report/probes.rst",
            category="1 Probe",
            labels={"what": "Probes and their baselines", "kind": "table"},
        ),
        probes_text="<results>/summary/probes.md",
        before_after=report(
            "<results>/summary/before_after.png",
            caption="../report/before_after.rst",
            category="3 Evaluation",
            labels={"what": "Before and after training", "kind": "figure"},
        ),
        before_after_page=report(
            "<results>/summary/before_after.html",
            caption="../report/before_after.rst",
            category="3 Evaluation",
            labels={"what": "Before and after training", "kind": "interactive"},
        ),
        training=report(
            "<results>/summary/training.png",
            caption="../report/training.rst",
            category="2 Training",
            labels={"what": "Reward and gold accuracy", "kind": "figure"},
        ),
        training_page=report(
            "<results>/summary/training.html",
            caption="../report/training.rst",
            category="2 Training",
            labels={"what": "Reward and gold accuracy", "kind": "interactive"},
        ),
        layers=report(
            "<results>/summary/layers.png",
            caption="../report/layers.rst",
            category="1 Probe",
            labels={"what": "AUROC by layer", "kind": "figure"},
        ),
        layers_page=report(
            "<results>/summary/layers.html",
            caption="../report/layers.rst",
            category="1 Probe",
            labels={"what": "AUROC by layer", "kind": "interactive"},
        ),
        manifest="<results>/summary/manifest.json",
    log:
        "<logs>/summary/compare.log",
    conda:
        "../../envs/base.yaml"
    params:
        settings=PLAN.model_dump_json(),
    shell:
        "python {input.script:q} --settings {params.settings:q}"
        ' --results "$(dirname "$(dirname {output.verdict:q})")" --output "$(dirname {output.verdict:q})" >{log:q} 2>&1'
