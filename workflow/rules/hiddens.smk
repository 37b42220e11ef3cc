"""Stage 3: hidden states. Needs a fetched model and rendered prompts. Makes

<results>/hiddens/{model}/{dataset}/{wording}/{split}.safetensors       all layers, both answers; temporary
<results>/hiddens/{model}/{dataset}/{wording}/{split}.manifest.json     their hash, and what they were read from
<results>/hiddens_tuned/{run}/seed{seed}/{wording}/{split}...           the same of a run's merged model
"""


rule extract_hiddens:
    """Read the states of every question with each of its answers at all layers, in one pass over the prompts."""
    input:
        script=code_inputs.script_path("extract_hiddens"),
        code=code_inputs.imports("extract_hiddens"),
        checkpoint=ancient("<results>/models/{model}/checkpoint"),
        model_manifest="<results>/models/{model}/manifest.json",
        prompts="<results>/prompts/{model}/{dataset}/{wording}/{split}.parquet",
    output:
        states=temp("<results>/hiddens/{model}/{dataset}/{wording}/{split}.safetensors"),
        manifest="<results>/hiddens/{model}/{dataset}/{wording}/{split}.manifest.json",
    log:
        "<logs>/hiddens/{model}/{dataset}/{wording}/{split}.log",
    # no benchmark: rules that have one cannot be taken from a cache between workflows
    conda:
        "../../envs/train.yaml"
    threads: CORES
    resources:
        gpu=0,
        processes=1,
    params:
        settings=INPUTS.section("models/{model}"),
        # three splits come from one job: `--cache` would take one for another without this, for it looks at params only
        split="{split}",
    shell:
        launched(
            "{input.script:q} --settings {params.settings:q}"
            " --checkpoint {input.checkpoint:q} --model-manifest {input.model_manifest:q} --prompts {input.prompts:q}"
            " --states {output.states:q} --manifest {output.manifest:q} >{log:q} 2>&1"
        )


use rule extract_hiddens as extract_tuned_hiddens with:
    input:
        script=code_inputs.script_path("extract_hiddens"),
        code=code_inputs.imports("extract_hiddens"),
        checkpoint=ancient("<results>/runs/{run}/seed{seed}/merged"),
        model_manifest="<results>/runs/{run}/seed{seed}/merged.json",
        prompts=INPUTS.of_run(
            "<results>/prompts/{policy}/{dataset}/{wording}/{split}.parquet"
        ),
    output:
        states=temp(
            "<results>/hiddens_tuned/{run}/seed{seed}/{wording}/{split}.safetensors"
        ),
        manifest="<results>/hiddens_tuned/{run}/seed{seed}/{wording}/{split}.manifest.json",
    log:
        "<logs>/hiddens_tuned/{run}/seed{seed}/{wording}/{split}.log",
    params:
        settings=INPUTS.section("models/{policy}"),
        split="{split}",
