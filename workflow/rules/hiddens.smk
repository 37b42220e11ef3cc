"""Stage 2: hidden states. Needs a fetched model and rendered prompts. Makes

    <results>/hiddens/{model}/{dataset}/{wording}/{split}.safetensors       all layers, both answers; temporary
    <results>/hiddens/{model}/{dataset}/{wording}/{split}.manifest.json     their hash, and what they were read from
"""


rule extract_hiddens:
    """Read the states of every question with each of its answers at all layers, in one pass over the prompts."""
    input:
        script=script_path("extract_hiddens"),
        code=imports("extract_hiddens"),
        checkpoint=ancient("<results>/models/{model}/checkpoint"),
        model_manifest="<results>/models/{model}/manifest.json",
        prompts="<results>/prompts/{model}/{dataset}/{wording}/{split}.parquet",
    output:
        states=temp("<results>/hiddens/{model}/{dataset}/{wording}/{split}.safetensors"),
        manifest="<results>/hiddens/{model}/{dataset}/{wording}/{split}.manifest.json",
    params:
        settings=settings("models/{model}"),
    log:
        "<logs>/hiddens/{model}/{dataset}/{wording}/{split}.log",
    benchmark:
        "<benchmarks>/hiddens/{model}/{dataset}/{wording}/{split}.tsv"
    conda:
        "../../envs/train.yaml"
    threads: workflow.cores
    resources:
        gpu=0,
        processes=1,
    shell:
        LAUNCH + " {input.script:q} --settings {params.settings:q}"
        " --checkpoint {input.checkpoint:q} --model-manifest {input.model_manifest:q} --prompts {input.prompts:q}"
        " --states {output.states:q} --manifest {output.manifest:q} >{log:q} 2>&1"
