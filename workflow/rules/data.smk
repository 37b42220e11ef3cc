"""Stage 1: questions.

Needs the datasets of the config (built in, local files, or the hub) and, for prompts, a model's tokenizer.
Makes <results>/data/{dataset}/{train,ppo,val}.parquet, disjoint, and
      <results>/prompts/{model}/{dataset}/{wording}/{train,ppo,val}.parquet, each with a manifest.json.
"""

from elkflow.data import source_files, template_files


rule split_dataset:
    """Deal a dataset's rows to probe, policy and evaluation; no group is in two of them."""
    input:
        sources=lambda wildcards: source_files(CONFIG.datasets[wildcards.dataset]),
        script=script_path("split_dataset"),
        code=imports("split_dataset"),
    output:
        train="<results>/data/{dataset}/train.parquet",
        ppo="<results>/data/{dataset}/ppo.parquet",
        val="<results>/data/{dataset}/val.parquet",
        manifest="<results>/data/{dataset}/manifest.json",
    params:
        settings=lambda wildcards: CONFIG.datasets[wildcards.dataset].questions().model_dump_json(),
        folder=subpath(output.manifest, parent=True),
    log:
        "<logs>/data/{dataset}/split.log",
    benchmark:
        "<benchmarks>/data/{dataset}/split.tsv"
    conda:
        "../../envs/base.yaml"
    shell:
        "python {input.script:q} --settings {params.settings:q} --folder {params.folder:q}"
        " --sources {input.sources:q} >{log:q} 2>&1"


rule render_prompts:
    """Word a dataset's questions for a model, after its own chat template."""
    input:
        checkpoint=ancient("<results>/models/{model}/checkpoint"),
        checkpoint_manifest="<results>/models/{model}/manifest.json",
        data=expand("<results>/data/{{dataset}}/{split}.parquet", split=["train", "ppo", "val"]),
        data_manifest="<results>/data/{dataset}/manifest.json",
        templates=lambda wildcards: template_files(CONFIG.datasets[wildcards.dataset], wildcards.wording),
        script=script_path("render_prompts"),
        code=imports("render_prompts"),
    output:
        train="<results>/prompts/{model}/{dataset}/{wording}/train.parquet",
        ppo="<results>/prompts/{model}/{dataset}/{wording}/ppo.parquet",
        val="<results>/prompts/{model}/{dataset}/{wording}/val.parquet",
        manifest="<results>/prompts/{model}/{dataset}/{wording}/manifest.json",
    params:
        settings=lambda wildcards: CONFIG.datasets[wildcards.dataset]
        .rendering(wildcards.wording)
        .model_dump_json(),
        chat=lambda wildcards: CONFIG.models[wildcards.model].model_dump_json(
            include={"chat", "system_prompt", "trust_remote_code"}
        ),
        data=subpath(input.data_manifest, parent=True),
        folder=subpath(output.manifest, parent=True),
    log:
        "<logs>/prompts/{model}/{dataset}/{wording}/render.log",
    conda:
        "../../envs/base.yaml"
    shell:
        "python {input.script:q} --settings {params.settings:q} --chat {params.chat:q}"
        " --checkpoint {input.checkpoint:q} --checkpoint-manifest {input.checkpoint_manifest:q}"
        " --data {params.data:q} --templates {input.templates:q} --folder {params.folder:q} >{log:q} 2>&1"
