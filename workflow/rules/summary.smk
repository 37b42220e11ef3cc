"""Stage 8: comparison and report.

Needs the answers of base and tuned models, the probes' figures and every step of training.
Makes <results>/summary/: verdict.json, comparison and probes as .csv and .md, figures as .png, the report's pages as
.html; and a model card, README.md, beside every merged model.
"""

TEMPLATES = [os.path.relpath(paths.REPORT / name) for name in ("page.html", "card.md")]


page = functools.partial(in_report, ending="html")
figure = functools.partial(in_report, ending="png")
table = functools.partial(in_report, ending="csv")
SOME_PROBES = {
    name: figure(name, category="1 Probe", title=f"Figure: {title}")
    for name, title, wanted in (
        ("wordings", "AUROC by wording", INPUTS.plan.wordings),
        ("transfer", "AUROC on other datasets", INPUTS.plan.transfer),
    )
    if wanted
}
SWEEP = (
    {"sweep": figure("sweep", category="0 Verdict", title="Figure: every training")}
    if len(INPUTS.plan.trainings()) > 1
    else {}
)


rule plan:
    """Write down what is compared: of a thousand runs it is too long for a command line."""
    input:
        template=os.path.relpath(paths.REPORT / "plan.json"),
    output:
        plan="<results>/summary/plan.json",
    log:
        "<logs>/summary/plan.log",
    localrule: True
    params:
        plan=INPUTS.plan.model_dump_json(),
    template_engine:
        "jinja2"


rule summarise:
    """Base against tuned on every question, beside what the probe knows."""
    input:
        plan="<results>/summary/plan.json",
        base=INPUTS.of_trainings(
            "<results>/evaluations/base/{policy}/{dataset}/{suite}/results.json"
        ),
        base_samples=INPUTS.of_trainings(
            "<results>/evaluations/base/{policy}/{dataset}/{suite}/samples.parquet"
        ),
        tuned=INPUTS.of_trainings(
            "<results>/evaluations/tuned/{run}/seed{seed}/{suite}/results.json"
        ),
        tuned_samples=INPUTS.of_trainings(
            "<results>/evaluations/tuned/{run}/seed{seed}/{suite}/samples.parquet"
        ),
        prompts=INPUTS.of_trainings(
            "<results>/prompts/{policy}/{dataset}/{asked}/val.parquet"
        ),
        metrics=INPUTS.of_trainings("<results>/runs/{run}/seed{seed}/metrics.jsonl"),
        fresh=(
            INPUTS.of_trainings("<results>/runs/{run}/seed{seed}/fresh_probe.json")
            + INPUTS.of_trainings(
                "<results>/runs/{run}/seed{seed}/fresh_probe.manifest.json"
            )
            if INPUTS.plan.fresh_probe
            else []
        ),
        without_rl=(
            INPUTS.of_trainings("<results>/evaluations/without_rl/{run}.csv")
            + INPUTS.of_trainings(
                "<results>/evaluations/without_rl/{run}.manifest.json"
            )
            if INPUTS.plan.without_rl
            else []
        ),
        templates=TEMPLATES,
        outcomes=INPUTS.of_trainings("<results>/runs/{run}/seed{seed}/outcome.json"),
        rewards=INPUTS.of_trainings("<results>/rewards/{probe}/{dataset}/val.parquet"),
        ceilings=INPUTS.of_trainings(
            "<results>/rewards/{probe}/{dataset}/ppo.manifest.json"
        ),
        probes=expand("<results>/probes/{probe}/probe.json", probe=INPUTS.plan.probes),
        run_manifests=INPUTS.of_trainings(
            "<results>/runs/{run}/seed{seed}/manifest.json"
        ),
        data_manifests=INPUTS.of_trainings("<results>/data/{dataset}/manifest.json"),
        model_manifests=INPUTS.of_trainings("<results>/models/{policy}/manifest.json"),
        layers=expand("<results>/probes/{probe}/layers.csv", probe=INPUTS.plan.probes),
        controls=expand(
            "<results>/probes/{probe}/controls.csv", probe=INPUTS.plan.probes
        ),
        datasets=expand(
            "<results>/probes/{probe}/datasets.csv", probe=INPUTS.plan.probes
        ),
        wordings=expand(
            "<results>/probes/{probe}/wordings.csv", probe=INPUTS.plan.probes
        ),
        scores=expand(
            "<results>/probes/{probe}/scores.parquet", probe=INPUTS.plan.probes
        ),
        transfer=expand(
            "<results>/probes/{probe}/transfer.{kind}",
            probe=INPUTS.plan.transfer,
            kind=["csv", "manifest.json"],
        ),
        lineage=INPUTS.of_trainings(
            "<results>/evaluations/base/{policy}/{dataset}/{suite}/manifest.json"
        )
        + INPUTS.of_trainings(
            "<results>/evaluations/tuned/{run}/seed{seed}/{suite}/manifest.json"
        )
        + expand("<results>/probes/{probe}/manifest.json", probe=INPUTS.plan.probes),
        script=code_inputs.script_path("summarise"),
        code=code_inputs.imports("summarise"),
    output:
        **SOME_PROBES,
        **SWEEP,
        verdict=ensure("<results>/summary/verdict.json", non_empty=True),
        overview=page("overview", category="0 Verdict", title="The verdict"),
        probe=page("probe", category="1 Probe", title="All about the probe"),
        layers=figure("layers", category="1 Probe", title="Figure: AUROC by layer"),
        reliability=figure(
            "reliability", category="1 Probe", title="Figure: reliability"
        ),
        rewards_drawn=figure(
            "rewards", category="1 Probe", title="Figure: rewards by gold label"
        ),
        probes=table("probes", category="1 Probe", title="Table: probes and baselines"),
        probes_text="<results>/summary/probes.md",
        steps=page("training", category="2 Training", title="All about training"),
        training=figure(
            "training", category="2 Training", title="Figure: reward and gold accuracy"
        ),
        evaluation=page(
            "evaluation", category="3 Evaluation", title="All about the evaluation"
        ),
        before_after=figure(
            "before_after", category="3 Evaluation", title="Figure: before and after"
        ),
        comparison=table(
            "comparison", category="3 Evaluation", title="Table: every task"
        ),
        comparison_text="<results>/summary/comparison.md",
        provenance=page(
            "provenance",
            category="4 Provenance",
            title="All about where it comes from",
        ),
        manifest="<results>/summary/manifest.json",
        cards=INPUTS.of_trainings("<results>/runs/{run}/seed{seed}/README.md"),
    log:
        "<logs>/summary/summarise.log",
    localrule: True
    conda:
        "../../envs/base.yaml"
    params:
        results=subpath(output.verdict, ancestor=2),
        folder=subpath(output.verdict, parent=True),
    shell:
        "python {input.script:q} --plan {input.plan:q} --results {params.results:q}"
        " --output {params.folder:q} >{log:q} 2>&1"
