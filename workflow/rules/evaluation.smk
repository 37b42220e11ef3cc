"""Stage 7: evaluation. What base and tuned models answer, by lm-evaluation-harness.

Needs a model's checkpoint (for a tuned one the merged checkpoint, or base and adapter) and the rendered val prompts.
Makes results.json, samples.parquet and manifest.json a suite, under evaluations/base/{model}/{dataset}/{suite}/ (shared
by all runs and seeds) and evaluations/tuned/{run}/seed{seed}/{suite}/. One job asks all suites, as starting up and
loading a model take longer than a small suite does. Scores are also kept in evaluations/answers/, which is no output
and may be deleted: there they are found again by the weights' hash and the tokens asked, so that a new task in a suite
costs that task only.
"""

TASK_FILES = [os.path.relpath(file) for file in sorted(paths.TASKS.glob("*.*"))]
RESULT_FILES = " ".join(
    f"{{output.results_{number}:q}}" for number in range(len(INPUTS.suites))
)
EVALUATE = launched(
    "{input.script:q} --settings {params.settings:q} --model-settings {params.model:q}"
    " --model {input.model:q} --adapter {input.adapter:q} --lineage {input.lineage:q} --prompts {input.prompts:q}"
    " --questions {input.questions:q}"
    f" --results {RESULT_FILES}"
    " --answers {params.evaluations:q}/answers >{log:q} 2>&1"
)


QUESTIONS = ["<results>/evaluations/questions"] if CONFIG.evaluation.fetched() else []
MERGED = CONFIG.evaluation.tuned == "merged"


rule fetch_questions:
    """Download the questions of the hub's tasks, once, for machines that compute without a network."""
    input:
        tasks=TASK_FILES,
        script=code_inputs.script_path("fetch_questions"),
        code=code_inputs.imports("fetch_questions"),
    output:
        folder=directory("<results>/evaluations/questions"),
        manifest="<results>/evaluations/questions.json",
    log:
        "<logs>/evaluations/questions.log",
    localrule: True
    conda:
        "../../envs/evaluate.yaml"
    params:
        tasks=CONFIG.evaluation.fetched(),
        revisions=json.dumps(CONFIG.evaluation.revisions, sort_keys=True),
    shell:
        "python {input.script:q} --tasks {params.tasks:q} --revisions {params.revisions:q} --folder {output.folder:q}"
        " --manifest {output.manifest:q} >{log:q} 2>&1"


rule evaluate_base:
    """Ask a model as it came; done once, whatever is tuned from it."""
    input:
        model=ancient("<results>/models/{model}/checkpoint"),
        adapter=[],
        lineage=[
            "<results>/models/{model}/manifest.json",
            *collect(
                "<results>/prompts/{{model}}/{{dataset}}/{wording}/manifest.json",
                wording=INPUTS.asked,
            ),
        ],
        prompts=collect(
            "<results>/prompts/{{model}}/{{dataset}}/{wording}/val.parquet",
            wording=INPUTS.asked,
        ),
        tasks=TASK_FILES,
        questions=ancient(QUESTIONS),
        questions_manifest=[f"{folder}.json" for folder in QUESTIONS],
        script=code_inputs.script_path("evaluate_model"),
        code=code_inputs.imports("evaluate_model"),
    output:
        **answers_in("<results>/evaluations/base/{model}/{dataset}"),
    log:
        "<logs>/evaluations/base/{model}/{dataset}.log",
    # no benchmark: rules that have one cannot be taken from a cache between workflows
    conda:
        "../../envs/evaluate.yaml"
    threads: CORES
    resources:
        gpu=0,
        processes=1,
    params:
        settings=CONFIG.evaluation.questions(),
        model=INPUTS.section("models/{model}"),
        evaluations=subpath(output.results_0, ancestor=5),
    shell:
        EVALUATE


rule evaluate_tuned:
    """Ask the model that a run made, the same questions."""
    input:
        model=ancient(
            INPUTS.of_run(
                "<results>/runs/{run}/seed{seed}/merged"
                if MERGED
                else "<results>/models/{policy}/checkpoint"
            )
        ),
        adapter=[] if MERGED else ancient("<results>/runs/{run}/seed{seed}/adapter"),
        lineage=INPUTS.of_run(
            *(
                ["<results>/runs/{run}/seed{seed}/merged.json"]
                if MERGED
                else [
                    "<results>/models/{policy}/manifest.json",
                    "<results>/runs/{run}/seed{seed}/manifest.json",
                ]
            ),
            "<results>/prompts/{policy}/{dataset}/{asked}/manifest.json",
        ),
        prompts=INPUTS.of_run(
            "<results>/prompts/{policy}/{dataset}/{asked}/val.parquet"
        ),
        tasks=TASK_FILES,
        questions=ancient(QUESTIONS),
        questions_manifest=[f"{folder}.json" for folder in QUESTIONS],
        script=code_inputs.script_path("evaluate_model"),
        code=code_inputs.imports("evaluate_model"),
    output:
        **answers_in("<results>/evaluations/tuned/{run}/seed{seed}"),
    log:
        "<logs>/evaluations/tuned/{run}/seed{seed}.log",
    benchmark:
        "<benchmarks>/evaluations/tuned/{run}/seed{seed}.tsv"
    conda:
        "../../envs/evaluate.yaml"
    threads: CORES
    resources:
        gpu=0,
        processes=1,
    params:
        settings=CONFIG.evaluation.questions(),
        model=INPUTS.section("models/{policy}"),
        evaluations=subpath(output.results_0, ancestor=5),
    shell:
        EVALUATE


rule without_rl:
    """What the reward achieves without training: the answer it prefers, and the best of N sampled ones."""
    input:
        samples=INPUTS.of_run(
            "<results>/evaluations/base/{policy}/{dataset}/{suite}/samples.parquet"
        ),
        rewards=INPUTS.of_run("<results>/rewards/{probe}/{dataset}/val.parquet"),
        prompts=INPUTS.of_run(
            "<results>/prompts/{policy}/{dataset}/{wording}/val.parquet"
        ),
        lineage=INPUTS.of_run(
            "<results>/evaluations/base/{policy}/{dataset}/{suite}/manifest.json",
            "<results>/rewards/{probe}/{dataset}/val.manifest.json",
            "<results>/prompts/{policy}/{dataset}/{wording}/manifest.json",
        ),
        script=code_inputs.script_path("without_rl"),
        code=code_inputs.imports("without_rl"),
    output:
        table="<results>/evaluations/without_rl/{run}.csv",
        manifest="<results>/evaluations/without_rl/{run}.manifest.json",
    log:
        "<logs>/evaluations/without_rl/{run}.log",
    localrule: True
    conda:
        "../../envs/base.yaml"
    params:
        counts=list(CONFIG.evaluation.without_rl),
        wording=INPUTS.section("runs/{run}/wording"),
    shell:
        "python {input.script:q} --name {wildcards.run:q} --wording {params.wording:q} --counts {params.counts:q}"
        " --samples {input.samples:q} --rewards {input.rewards:q} --prompts {input.prompts:q}"
        " --lineage {input.lineage:q} --table {output.table:q} --manifest {output.manifest:q} >{log:q} 2>&1"
