"""Stage 6: PPO.

Needs a model, rendered prompts (ppo and val) and the probe's reward tables of both. Makes, for every run and seed,
<results>/runs/{run}/seed{seed}/adapter/ (peft), metrics.jsonl, samples.jsonl, outcome.json and manifest.json; then
merged/ (a plain checkpoint) and merged.json. Checkpoints stand in checkpoints/ beside them; they are no outputs, so
they are still there when a killed run starts again.
"""


rule train_ppo:
    """Train the policy on the reward table, or go on from the newest checkpoint."""
    input:
        model=ancient(INPUTS.of_run("<results>/models/{policy}/checkpoint")),
        prompts=INPUTS.of_run(
            "<results>/prompts/{policy}/{dataset}/{wording}/ppo.parquet"
        ),
        rewards=INPUTS.of_run("<results>/rewards/{probe}/{dataset}/ppo.parquet"),
        val_prompts=INPUTS.of_run(
            "<results>/prompts/{policy}/{dataset}/{wording}/val.parquet"
        ),
        val_rewards=INPUTS.of_run("<results>/rewards/{probe}/{dataset}/val.parquet"),
        lineage=INPUTS.of_run(
            "<results>/models/{policy}/manifest.json",
            "<results>/prompts/{policy}/{dataset}/{wording}/manifest.json",
            "<results>/rewards/{probe}/{dataset}/ppo.manifest.json",
            "<results>/rewards/{probe}/{dataset}/val.manifest.json",
        ),
        script=code_inputs.script_path("train_ppo"),
        code=code_inputs.imports("train_ppo"),
        own=INPUTS.reward_module,
    output:
        adapter=directory("<results>/runs/{run}/seed{seed}/adapter"),
        metrics=ensure("<results>/runs/{run}/seed{seed}/metrics.jsonl", non_empty=True),
        samples="<results>/runs/{run}/seed{seed}/samples.jsonl",
        outcome="<results>/runs/{run}/seed{seed}/outcome.json",
        manifest="<results>/runs/{run}/seed{seed}/manifest.json",
    log:
        "<logs>/runs/{run}/seed{seed}/train_ppo.log",
    benchmark:
        "<benchmarks>/runs/{run}/seed{seed}/train_ppo.tsv"
    conda:
        "../../envs/train.yaml"
    threads: CORES
    resources:
        gpu=0,
        processes=1,
    params:
        settings=INPUTS.section("runs/{run}/ppo"),
        algorithm=INPUTS.section("runs/{run}/algorithm"),
        reward=INPUTS.section("runs/{run}/reward"),
        trackers=INPUTS.section("runs/{run}/trackers"),
        folder=subpath(output.manifest, parent=True),
        model=INPUTS.section("models/{policy}"),
    shell:
        launched(
            "{input.script:q} --settings {params.settings:q} --algorithm {params.algorithm:q}"
            " --reward {params.reward:q} --trackers {params.trackers:q} --model-settings {params.model:q}"
            " --seed {wildcards.seed:q} --model {input.model:q} --prompts {input.prompts:q} --rewards {input.rewards:q}"
            " --val-prompts {input.val_prompts:q} --val-rewards {input.val_rewards:q} --lineage {input.lineage:q}"
            " --checkpoints {params.folder:q}/checkpoints --adapter {output.adapter:q}"
            " --metrics {output.metrics:q} --samples {output.samples:q} --outcome {output.outcome:q}"
            " --manifest {output.manifest:q} >{log:q} 2>&1"
        )


rule merge_lora:
    """Merge the adapter into the model, unless their logits differ by more than rounding explains."""
    input:
        model=ancient(INPUTS.of_run("<results>/models/{policy}/checkpoint")),
        model_manifest=INPUTS.of_run("<results>/models/{policy}/manifest.json"),
        adapter=ancient("<results>/runs/{run}/seed{seed}/adapter"),
        manifest="<results>/runs/{run}/seed{seed}/manifest.json",
        prompts=INPUTS.of_run(
            "<results>/prompts/{policy}/{dataset}/{wording}/val.parquet"
        ),
        script=code_inputs.script_path("merge_lora"),
        code=code_inputs.imports("merge_lora"),
    output:
        merged=directory("<results>/runs/{run}/seed{seed}/merged"),
        manifest="<results>/runs/{run}/seed{seed}/merged.json",
    log:
        "<logs>/runs/{run}/seed{seed}/merge_lora.log",
    conda:
        "../../envs/train.yaml"
    threads: CORES
    resources:
        gpu=0,
        processes=1,
    params:
        model=INPUTS.section("models/{policy}"),
    shell:
        "python {input.script:q} --model-settings {params.model:q} --model {input.model:q} --adapter {input.adapter:q}"
        " --prompts {input.prompts:q} --lineage {input.model_manifest:q} {input.manifest:q}"
        " --merged {output.merged:q} --manifest {output.manifest:q} >{log:q} 2>&1"
