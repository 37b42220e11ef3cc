"""Stage 1: questions.

Needs the datasets of the config (built in, local files, or the hub) and, for prompts, a model's tokenizer.
Makes <results>/data/{dataset}/{train,ppo,val}.parquet, disjoint, and
      <results>/prompts/{model}/{dataset}/{wording}/{train,ppo,val}.parquet, each with a manifest.json.
A mixture's files are joined from those of the datasets in it.
Targets of their own: prefetch (fill the caches where there is a network) and push_datasets (send splits to the hub).
"""

import json
import os

from elkflow.orchestration import rule_inputs


rule split_dataset:
    """Deal a dataset's rows to probe, policy and evaluation; no group is in two of them."""
    input:
        sources=lambda wildcards: rule_inputs.source_files(
            CONFIG.datasets[wildcards.dataset]
        ),
        script=script_path("split_dataset"),
        code=imports("split_dataset"),
    output:
        train="<results>/data/{dataset}/train.parquet",
        ppo="<results>/data/{dataset}/ppo.parquet",
        val="<results>/data/{dataset}/val.parquet",
        manifest="<results>/data/{dataset}/manifest.json",
    log:
        "<logs>/data/{dataset}/split.log",
    benchmark:
        "<benchmarks>/data/{dataset}/split.tsv"
    wildcard_constraints:
        dataset=PLAIN,
    conda:
        "../../envs/base.yaml"
    params:
        settings=lambda wildcards: CONFIG.datasets[wildcards.dataset]
        .questions()
        .model_dump_json(),
        folder=subpath(output.manifest, parent=True),
    shell:
        "python {input.script:q} --settings {params.settings:q} --folder {params.folder:q}"
        " --sources {input.sources:q} >{log:q} 2>&1"


rule render_prompts:
    """Word a dataset's questions for a model, after its own chat template."""
    input:
        checkpoint=ancient("<results>/models/{model}/checkpoint"),
        checkpoint_manifest="<results>/models/{model}/manifest.json",
        data=expand(
            "<results>/data/{{dataset}}/{split}.parquet", split=["train", "ppo", "val"]
        ),
        data_manifest="<results>/data/{dataset}/manifest.json",
        templates=lambda wildcards: rule_inputs.template_files(
            CONFIG.datasets[wildcards.dataset], wildcards.wording
        ),
        script=script_path("render_prompts"),
        code=imports("render_prompts"),
    output:
        train="<results>/prompts/{model}/{dataset}/{wording}/train.parquet",
        ppo="<results>/prompts/{model}/{dataset}/{wording}/ppo.parquet",
        val="<results>/prompts/{model}/{dataset}/{wording}/val.parquet",
        manifest="<results>/prompts/{model}/{dataset}/{wording}/manifest.json",
    log:
        "<logs>/prompts/{model}/{dataset}/{wording}/render.log",
    wildcard_constraints:
        dataset=PLAIN,
    conda:
        "../../envs/train.yaml"
    params:
        settings=lambda wildcards: CONFIG.datasets[wildcards.dataset]
        .rendering(wildcards.wording)
        .model_dump_json(),
        chat=lambda wildcards: CONFIG.models[wildcards.model].model_dump_json(
            include={"chat", "system_prompt", "trust_remote_code"}
        ),
        data=subpath(input.data_manifest, parent=True),
        folder=subpath(output.manifest, parent=True),
    shell:
        "python {input.script:q} --settings {params.settings:q} --chat {params.chat:q}"
        " --checkpoint {input.checkpoint:q} --checkpoint-manifest {input.checkpoint_manifest:q}"
        " --data {params.data:q} --templates {input.templates:q} --folder {params.folder:q} >{log:q} 2>&1"


rule mix_datasets:
    """Join the split files of a mixture's datasets."""
    input:
        data=of_members("<results>/data/{member}/{split}.parquet"),
        manifests=of_members("<results>/data/{member}/manifest.json"),
        script=script_path("mix_datasets"),
        code=imports("mix_datasets"),
    output:
        train="<results>/data/{dataset}/train.parquet",
        ppo="<results>/data/{dataset}/ppo.parquet",
        val="<results>/data/{dataset}/val.parquet",
        manifest="<results>/data/{dataset}/manifest.json",
    log:
        "<logs>/data/{dataset}/mix.log",
    wildcard_constraints:
        dataset=MIXED,
    conda:
        "../../envs/base.yaml"
    params:
        names=lambda wildcards: CONFIG.datasets[wildcards.dataset].mixture,
        folder=subpath(output.manifest, parent=True),
    shell:
        "python {input.script:q} --names {params.names:q} --manifests {input.manifests:q} --folder {params.folder:q}"
        " >{log:q} 2>&1"


use rule mix_datasets as mix_prompts with:
    input:
        data=of_members("<results>/prompts/{model}/{member}/{wording}/{split}.parquet"),
        manifests=of_members(
            "<results>/prompts/{model}/{member}/{wording}/manifest.json"
        ),
        script=script_path("mix_datasets"),
        code=imports("mix_datasets"),
    output:
        train="<results>/prompts/{model}/{dataset}/{wording}/train.parquet",
        ppo="<results>/prompts/{model}/{dataset}/{wording}/ppo.parquet",
        val="<results>/prompts/{model}/{dataset}/{wording}/val.parquet",
        manifest="<results>/prompts/{model}/{dataset}/{wording}/manifest.json",
    log:
        "<logs>/prompts/{model}/{dataset}/{wording}/mix.log",


rule push_datasets:
    """Send every dataset that has a `push_to` to the hub."""
    input:
        receipts,
    localrule: True


rule push_dataset:
    """Send one dataset's splits, manifest and card to the hub."""
    input:
        data=expand(
            "<results>/data/{{dataset}}/{split}.parquet", split=["train", "ppo", "val"]
        ),
        manifest="<results>/data/{dataset}/manifest.json",
        script=script_path("push_dataset"),
        code=imports("push_dataset"),
    output:
        receipt="<results>/pushed/{dataset}.json",
    log:
        "<logs>/pushed/{dataset}.log",
    localrule: True
    conda:
        "../../envs/base.yaml"
    params:
        repo=lambda wildcards: CONFIG.datasets[wildcards.dataset].push_to,
        licence=lambda wildcards: CONFIG.datasets[wildcards.dataset].licence
        or "not stated",
        folder=subpath(input.manifest, parent=True),
    shell:
        "python {input.script:q} --name {wildcards.dataset:q} --repo {params.repo:q} --licence {params.licence:q}"
        " --folder {params.folder:q} --receipt {output.receipt:q} >{log:q} 2>&1"


rule prefetch:
    """Bring all that the config needs of the hub to this machine; then set HF_HUB_OFFLINE=1 for the rest."""
    input:
        models=collect("<results>/models/{model}/manifest.json", model=CONFIG.models),
        questions=(
            "<results>/evaluations/questions.json"
            if CONFIG.evaluation.fetched()
            else []
        ),
        script=script_path("prefetch"),
        code=imports("prefetch"),
    output:
        record="<results>/prefetched.json",
    log:
        "<logs>/prefetch.log",
    localrule: True
    conda:
        "../../envs/base.yaml"
    params:
        datasets=json.dumps(
            {
                name: dataset.questions().model_dump(mode="json")
                for name, dataset in CONFIG.datasets.items()
                if dataset.hub is not None
            }
        ),
    # shown as well as logged: it tells which revisions to pin
    shell:
        "python {input.script:q} --datasets {params.datasets:q} --record {output.record:q} 2>&1 | tee {log:q}"
