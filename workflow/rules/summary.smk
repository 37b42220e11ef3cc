"""Stage 8: comparison and report.

Needs the answers of base and tuned models, the probes' figures and every step of training.
Makes <results>/summary/: verdict.json, comparison and probes as .csv and .md, figures as .png, the report's pages as
.html; and a model card, README.md, beside every merged model.
"""

from functools import partial

from elkflow.settings.summary import Plan

PLAN = Plan.of(CONFIG)


def of_trainings(pattern):
    """`pattern` filled with every run, seed and suite, and with the run's own policy, dataset and probe."""
    paths = (
        pattern.format(suite=suite, wording=wording, **training.model_dump(exclude={"wording"}))
        for training in PLAN.trainings()
        for suite in PLAN.suites
        for wording in CONFIG.evaluation.wordings()
    )
    return list(dict.fromkeys(paths))


def in_report(name, ending, kind, category, title):
    """An output of the summary with its place and caption in the report."""
    return report(
        f"<results>/summary/{name}.{ending}",
        caption=f"../report/{name}.rst",
        category=category,
        labels={"title": title, "kind": kind},
    )


page = partial(in_report, ending="html", kind="page")
figure = partial(in_report, ending="png", kind="figure")
table = partial(in_report, ending="csv", kind="table")


rule compare:
    """Base against tuned on every question, beside what the probe knows."""
    input:
        base=of_trainings("<results>/evaluations/base/{policy}/{dataset}/{suite}/results.json"),
        base_samples=of_trainings("<results>/evaluations/base/{policy}/{dataset}/{suite}/samples.parquet"),
        tuned=of_trainings("<results>/evaluations/tuned/{run}/seed{seed}/{suite}/results.json"),
        tuned_samples=of_trainings("<results>/evaluations/tuned/{run}/seed{seed}/{suite}/samples.parquet"),
        prompts=of_trainings("<results>/prompts/{policy}/{dataset}/{wording}/val.parquet"),
        metrics=of_trainings("<results>/runs/{run}/seed{seed}/metrics.jsonl"),
        outcomes=of_trainings("<results>/runs/{run}/seed{seed}/outcome.json"),
        rewards=of_trainings("<results>/rewards/{probe}/{dataset}/val.parquet"),
        probes=expand("<results>/probes/{probe}/probe.json", probe=PLAN.probes),
        run_manifests=of_trainings("<results>/runs/{run}/seed{seed}/manifest.json"),
        data_manifests=of_trainings("<results>/data/{dataset}/manifest.json"),
        model_manifests=of_trainings("<results>/models/{policy}/manifest.json"),
        layers=expand("<results>/probes/{probe}/layers.csv", probe=PLAN.probes),
        controls=expand("<results>/probes/{probe}/controls.csv", probe=PLAN.probes),
        lineage=of_trainings("<results>/evaluations/base/{policy}/{dataset}/{suite}/manifest.json")
        + of_trainings("<results>/evaluations/tuned/{run}/seed{seed}/{suite}/manifest.json")
        + expand("<results>/probes/{probe}/manifest.json", probe=PLAN.probes),
        script=script_path("compare"),
        code=imports("compare"),
    output:
        verdict=ensure("<results>/summary/verdict.json", non_empty=True),
        overview=page("overview", category="0 Verdict", title="The verdict"),
        probe=page("probe", category="1 Probe", title="What the model knows"),
        layers=figure("layers", category="1 Probe", title="AUROC by layer"),
        probes=table("probes", category="1 Probe", title="Probes and baselines"),
        probes_text="<results>/summary/probes.md",
        steps=page("training", category="2 Training", title="What training did"),
        training=figure("training", category="2 Training", title="Reward and gold accuracy"),
        evaluation=page("evaluation", category="3 Evaluation", title="Base against tuned"),
        before_after=figure("before_after", category="3 Evaluation", title="Before and after"),
        comparison=table("comparison", category="3 Evaluation", title="Every task"),
        comparison_text="<results>/summary/comparison.md",
        provenance=page("provenance", category="4 Provenance", title="What it was made from"),
        manifest="<results>/summary/manifest.json",
        cards=of_trainings("<results>/runs/{run}/seed{seed}/README.md"),
    log:
        "<logs>/summary/compare.log",
    conda:
        "../../envs/base.yaml"
    params:
        settings=PLAN.model_dump_json(),
        results=subpath(output.verdict, ancestor=2),
        folder=subpath(output.verdict, parent=True),
    shell:
        "python {input.script:q} --settings {params.settings:q} --results {params.results:q}"
        " --output {params.folder:q} >{log:q} 2>&1"
