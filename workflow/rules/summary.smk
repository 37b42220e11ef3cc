"""Stage 8: comparison and report.

Needs the answers of base and tuned models, the probes' figures and every step of training.
Makes <results>/summary/: verdict.json, comparison and probes as .csv and .md, figures as .png, the report's pages as
.html; and a model card, README.md, beside every merged model.
"""

from functools import partial
from os.path import relpath

TEMPLATES = [relpath(WORKFLOW / "report" / name) for name in ("page.html", "card.md")]


page = partial(in_report, ending="html")
figure = partial(in_report, ending="png")
table = partial(in_report, ending="csv")
SOME_PROBES = {
    name: figure(name, category="1 Probe", title=f"Figure: {title}")
    for name, title, wanted in (
        ("wordings", "AUROC by wording", PLAN.wordings),
        ("transfer", "AUROC on other datasets", PLAN.transfer),
    )
    if wanted
}
SWEEP = (
    {"sweep": figure("sweep", category="0 Verdict", title="Figure: every training")}
    if len(PLAN.trainings()) > 1
    else {}
)


rule summarise:
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
        fresh=(
            of_trainings("<results>/runs/{run}/seed{seed}/fresh_probe.json")
            + of_trainings("<results>/runs/{run}/seed{seed}/fresh_probe.manifest.json")
            if PLAN.fresh_probe
            else []
        ),
        without_rl=(
            of_trainings("<results>/evaluations/without_rl/{run}.csv")
            + of_trainings("<results>/evaluations/without_rl/{run}.manifest.json")
            if PLAN.without_rl
            else []
        ),
        templates=TEMPLATES,
        outcomes=of_trainings("<results>/runs/{run}/seed{seed}/outcome.json"),
        rewards=of_trainings("<results>/rewards/{probe}/{dataset}/val.parquet"),
        ceilings=of_trainings("<results>/rewards/{probe}/{dataset}/ppo.manifest.json"),
        probes=expand("<results>/probes/{probe}/probe.json", probe=PLAN.probes),
        run_manifests=of_trainings("<results>/runs/{run}/seed{seed}/manifest.json"),
        data_manifests=of_trainings("<results>/data/{dataset}/manifest.json"),
        model_manifests=of_trainings("<results>/models/{policy}/manifest.json"),
        layers=expand("<results>/probes/{probe}/layers.csv", probe=PLAN.probes),
        controls=expand("<results>/probes/{probe}/controls.csv", probe=PLAN.probes),
        datasets=expand("<results>/probes/{probe}/datasets.csv", probe=PLAN.probes),
        wordings=expand("<results>/probes/{probe}/wordings.csv", probe=PLAN.probes),
        scores=expand("<results>/probes/{probe}/scores.parquet", probe=PLAN.probes),
        transfer=expand(
            "<results>/probes/{probe}/transfer.{kind}",
            probe=PLAN.transfer,
            kind=["csv", "manifest.json"],
        ),
        lineage=of_trainings(
            "<results>/evaluations/base/{policy}/{dataset}/{suite}/manifest.json"
        )
        + of_trainings(
            "<results>/evaluations/tuned/{run}/seed{seed}/{suite}/manifest.json"
        )
        + expand("<results>/probes/{probe}/manifest.json", probe=PLAN.probes),
        script=script_path("summarise"),
        code=imports("summarise"),
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
        cards=of_trainings("<results>/runs/{run}/seed{seed}/README.md"),
    log:
        "<logs>/summary/summarise.log",
    localrule: True
    conda:
        "../../envs/base.yaml"
    params:
        settings=PLAN.model_dump_json(),
        results=subpath(output.verdict, ancestor=2),
        folder=subpath(output.verdict, parent=True),
    shell:
        "python {input.script:q} --settings {params.settings:q} --results {params.results:q}"
        " --output {params.folder:q} >{log:q} 2>&1"


rule fresh_probe:
    """Read the tuned model with the frozen probe and with a fresh one: is the truth hidden, or kept?"""
    input:
        probe=filled("runs/{run}", "<results>/probes/{probe}/probe.json"),
        weights=filled("runs/{run}", "<results>/probes/{probe}/probe.safetensors"),
        probe_manifest=filled("runs/{run}", "<results>/probes/{probe}/manifest.json"),
        train_prompts=tuned_prompts("train"),
        val_prompts=tuned_prompts("val"),
        train_states=ancient(tuned_states("train", "safetensors")),
        val_states=ancient(tuned_states("val", "safetensors")),
        train_lineage=tuned_states("train", "manifest.json"),
        val_lineage=tuned_states("val", "manifest.json"),
        script=script_path("fresh_probe"),
        code=imports("fresh_probe"),
    output:
        figures="<results>/runs/{run}/seed{seed}/fresh_probe.json",
        manifest="<results>/runs/{run}/seed{seed}/fresh_probe.manifest.json",
    log:
        "<logs>/runs/{run}/seed{seed}/fresh_probe.log",
    benchmark:
        "<benchmarks>/runs/{run}/seed{seed}/fresh_probe.tsv"
    conda:
        "../../envs/train.yaml"
    threads: CORES
    params:
        settings=lambda wildcards: CONFIG.probes[
            CONFIG.runs[wildcards.run].probe
        ].model_dump_json(),
        policy=lambda wildcards: CONFIG.runs[wildcards.run].policy,
    shell:
        'python {input.script:q} --settings {params.settings:q} --probe "$(dirname {input.probe:q})"'
        " --policy {params.policy:q}"
        " --train-prompts {input.train_prompts:q} --val-prompts {input.val_prompts:q}"
        " --train-states {input.train_states:q} --val-states {input.val_states:q}"
        " --lineage {input.probe_manifest:q} {input.train_lineage:q} {input.val_lineage:q}"
        " --output {output.figures:q} --manifest {output.manifest:q} >{log:q} 2>&1"
