"""Stage 2: prompts.

Needs the splits of a dataset, its templates and a model's tokenizer.
Makes <results>/prompts/{model}/{dataset}/{wording}/{train,ppo,val}.parquet and manifest.json. A mixture's files are
joined from those of the datasets in it.
"""


rule render_prompts:
    """Word a dataset's questions for a model, after its own chat template."""
    input:
        checkpoint=ancient("<results>/models/{model}/checkpoint"),
        checkpoint_manifest="<results>/models/{model}/manifest.json",
        train="<results>/data/{dataset}/train.parquet",
        ppo="<results>/data/{dataset}/ppo.parquet",
        val="<results>/data/{dataset}/val.parquet",
        data_manifest="<results>/data/{dataset}/manifest.json",
        templates=INPUTS.template_files,
        script=code_inputs.script_path("render_prompts"),
        code=code_inputs.imports("render_prompts"),
    output:
        train="<results>/prompts/{model}/{dataset}/{wording}/train.parquet",
        ppo="<results>/prompts/{model}/{dataset}/{wording}/ppo.parquet",
        val="<results>/prompts/{model}/{dataset}/{wording}/val.parquet",
        manifest="<results>/prompts/{model}/{dataset}/{wording}/manifest.json",
    log:
        "<logs>/prompts/{model}/{dataset}/{wording}/render.log",
    wildcard_constraints:
        dataset=INPUTS.plain,
    conda:
        "../../envs/train.yaml"
    params:
        settings=INPUTS.rendering,
        chat=INPUTS.chat,
        data=subpath(input.data_manifest, parent=True),
        folder=subpath(output.manifest, parent=True),
    shell:
        "python {input.script:q} --settings {params.settings:q} --chat {params.chat:q}"
        " --checkpoint {input.checkpoint:q} --checkpoint-manifest {input.checkpoint_manifest:q}"
        " --data {params.data:q} --templates {input.templates:q} --folder {params.folder:q} >{log:q} 2>&1"


use rule mix_datasets as mix_prompts with:
    input:
        data=INPUTS.of_members(
            "<results>/prompts/{model}/{member}/{wording}/{split}.parquet"
        ),
        manifests=INPUTS.of_members(
            "<results>/prompts/{model}/{member}/{wording}/manifest.json"
        ),
        script=code_inputs.script_path("mix_datasets"),
        code=code_inputs.imports("mix_datasets"),
    output:
        train="<results>/prompts/{model}/{dataset}/{wording}/train.parquet",
        ppo="<results>/prompts/{model}/{dataset}/{wording}/ppo.parquet",
        val="<results>/prompts/{model}/{dataset}/{wording}/val.parquet",
        manifest="<results>/prompts/{model}/{dataset}/{wording}/manifest.json",
    log:
        "<logs>/prompts/{model}/{dataset}/{wording}/mix.log",
