"""Stage 5: rewards.

Needs a probe and the hidden states of a split under the wordings it reads.
Makes <results>/rewards/{probe}/{dataset}/{split}.parquet (id, rewards of the answers in order, label for diagnosis) and
{split}.manifest.json, which tells the gold ceiling: how often the answer with the higher reward is the right one.

`--set-scatter scoring=4` scores a split in four pieces, as independent jobs; the table is the same, byte for byte.
"""


scattergather:
    scoring=1,


SHARDS = gather.scoring(
    "<results>/rewards/{{probe}}/{{dataset}}/{{split}}.{scatteritem}.parquet"
)


rule score_shard:
    """Score one piece of a split."""
    input:
        probe="<results>/probes/{probe}/probe.json",
        weights="<results>/probes/{probe}/probe.safetensors",
        manifest="<results>/probes/{probe}/manifest.json",
        prompts=INPUTS.of_probe(
            "<results>/prompts/{model}/{dataset}/{wording}/{split}.parquet",
            rewarded=True,
        ),
        states=ancient(
            INPUTS.of_probe(
                "<results>/hiddens/{model}/{dataset}/{wording}/{split}.safetensors",
                rewarded=True,
            )
        ),
        lineage=INPUTS.of_probe(
            "<results>/hiddens/{model}/{dataset}/{wording}/{split}.manifest.json",
            rewarded=True,
        ),
        script=code_inputs.script_path("score_shard"),
        code=code_inputs.imports("score_shard"),
    output:
        odds=temp("<results>/rewards/{probe}/{dataset}/{split}.{scatteritem}.parquet"),
    log:
        "<logs>/rewards/{probe}/{dataset}/{split}.{scatteritem}.log",
    conda:
        "../../envs/train.yaml"
    params:
        folder=subpath(input.probe, parent=True),
    shell:
        "python {input.script:q} --probe {params.folder:q} --prompts {input.prompts:q}"
        " --states {input.states:q} --shard {wildcards.scatteritem:q} --odds {output.odds:q} >{log:q} 2>&1"


rule score_answers:
    """Score every allowed answer of every question once; runs, seeds and epochs look rewards up."""
    input:
        probe="<results>/probes/{probe}/probe.json",
        weights="<results>/probes/{probe}/probe.safetensors",
        prompts=INPUTS.of_probe(
            "<results>/prompts/{model}/{dataset}/{wording}/{split}.parquet",
            rewarded=True,
        ),
        states=ancient(
            INPUTS.of_probe(
                "<results>/hiddens/{model}/{dataset}/{wording}/{split}.safetensors",
                rewarded=True,
            )
        ),
        lineage=INPUTS.of_probe(
            "<results>/hiddens/{model}/{dataset}/{wording}/{split}.manifest.json",
            rewarded=True,
        ),
        manifest="<results>/probes/{probe}/manifest.json",
        shards=SHARDS if len(SHARDS) > 1 else [],
        script=code_inputs.script_path("score_answers"),
        code=code_inputs.imports("score_answers"),
    output:
        rewards="<results>/rewards/{probe}/{dataset}/{split}.parquet",
        manifest="<results>/rewards/{probe}/{dataset}/{split}.manifest.json",
    log:
        "<logs>/rewards/{probe}/{dataset}/{split}.log",
    conda:
        "../../envs/train.yaml"
    params:
        folder=subpath(input.probe, parent=True),
    shell:
        "python {input.script:q} --probe {params.folder:q} --prompts {input.prompts:q}"
        " --states {input.states:q} --lineage {input.manifest:q} {input.lineage:q}"
        " --shards {input.shards:q} --rewards {output.rewards:q} --manifest {output.manifest:q} >{log:q} 2>&1"
