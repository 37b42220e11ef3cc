"""Stage 7: evaluation. What base and tuned models answer, by lm-evaluation-harness.

Needs a model's checkpoint (for a tuned one the merged checkpoint, or base and adapter) and the rendered val prompts.
Makes results.json, samples.parquet and manifest.json a suite, under evaluations/base/{model}/{dataset}/{suite}/ (shared
by all runs and seeds) and evaluations/tuned/{run}/seed{seed}/{suite}/. One job asks all suites, as starting up and
loading a model take longer than a small suite does.
"""

from os.path import relpath

SUITES = list(CONFIG.evaluation.suites)
WORDINGS = CONFIG.evaluation.wordings()
TASK_FILES = [relpath(file) for file in sorted((Path(workflow.basedir) / "workflow" / "tasks").glob("*.*"))]
EVALUATE = (
    LAUNCH + " {input.script:q} --settings {params.settings:q} --model-settings {params.model:q}"
    " --model {input.model:q} --adapter {input.adapter:q} --lineage {input.lineage:q} --prompts {input.prompts:q}"
    " --results {output.results:q} >{log:q} 2>&1"
)


def by_subject(merged, adapter):
    """Input function: one of two lists of paths, as the config has tuned models evaluated merged or not."""
    paths = merged if CONFIG.evaluation.tuned == "merged" else adapter
    return lambda wildcards: [path.format(policy=CONFIG.runs[wildcards.run].policy, **wildcards) for path in paths]


def run_prompts(wildcards):
    """The val prompts of a run's policy and dataset, one file a wording."""
    run = CONFIG.runs[wildcards.run]
    return collect(f"<results>/prompts/{run.policy}/{run.dataset}/{{wording}}/val.parquet", wording=WORDINGS)


rule evaluate_base:
    """Ask a model as it came; done once, whatever is tuned from it."""
    input:
        model=ancient("<results>/models/{model}/checkpoint"),
        adapter=[],
        lineage="<results>/models/{model}/manifest.json",
        prompts=collect("<results>/prompts/{{model}}/{{dataset}}/{wording}/val.parquet", wording=WORDINGS),
        tasks=TASK_FILES,
        script=script_path("evaluate_model"),
        code=imports("evaluate_model"),
    output:
        results=collect("<results>/evaluations/base/{{model}}/{{dataset}}/{each}/results.json", each=SUITES),
        samples=collect("<results>/evaluations/base/{{model}}/{{dataset}}/{each}/samples.parquet", each=SUITES),
        manifests=collect("<results>/evaluations/base/{{model}}/{{dataset}}/{each}/manifest.json", each=SUITES),
    params:
        settings=CONFIG.evaluation.questions(),
        model=settings("models/{model}"),
    log:
        "<logs>/evaluations/base/{model}/{dataset}.log",
    benchmark:
        "<benchmarks>/evaluations/base/{model}/{dataset}.tsv"
    conda:
        "../../envs/evaluate.yaml"
    threads: workflow.cores
    resources:
        gpu=0,
        processes=1,
    shell:
        EVALUATE


rule evaluate_tuned:
    """Ask the model that a run made, the same questions."""
    input:
        model=ancient(
            by_subject(["<results>/runs/{run}/seed{seed}/merged"], ["<results>/models/{policy}/checkpoint"])
        ),
        adapter=ancient(by_subject([], ["<results>/runs/{run}/seed{seed}/adapter"])),
        lineage=by_subject(
            ["<results>/runs/{run}/seed{seed}/merged.json"],
            ["<results>/models/{policy}/manifest.json", "<results>/runs/{run}/seed{seed}/manifest.json"],
        ),
        prompts=run_prompts,
        tasks=TASK_FILES,
        script=script_path("evaluate_model"),
        code=imports("evaluate_model"),
    output:
        results=collect("<results>/evaluations/tuned/{{run}}/seed{{seed}}/{each}/results.json", each=SUITES),
        samples=collect("<results>/evaluations/tuned/{{run}}/seed{{seed}}/{each}/samples.parquet", each=SUITES),
        manifests=collect("<results>/evaluations/tuned/{{run}}/seed{{seed}}/{each}/manifest.json", each=SUITES),
    params:
        settings=CONFIG.evaluation.questions(),
        model=lambda wildcards: CONFIG.models[CONFIG.runs[wildcards.run].policy].model_dump_json(),
    log:
        "<logs>/evaluations/tuned/{run}/seed{seed}.log",
    benchmark:
        "<benchmarks>/evaluations/tuned/{run}/seed{seed}.tsv"
    conda:
        "../../envs/evaluate.yaml"
    threads: workflow.cores
    resources:
        gpu=0,
        processes=1,
    shell:
        EVALUATE
