"""Stage 1: data.

Needs the datasets of the config (built in, local files, or the hub).
Makes <results>/data/{dataset}/{train,ppo,val}.parquet, disjoint, and manifest.json, which names the source. A mixture's
files are joined from those of the datasets in it.
"""


rule split_dataset:
    """Deal a dataset's rows to probe, policy and evaluation; no group is in two of them."""
    input:
        sources=INPUTS.source_files,
        script=code_inputs.script_path("split_dataset"),
        code=code_inputs.imports("split_dataset"),
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
        dataset=INPUTS.plain,
    conda:
        "../../envs/base.yaml"
    params:
        settings=INPUTS.questions,
        read=INPUTS.fields_read,
        folder=subpath(output.manifest, parent=True),
    shell:
        "python {input.script:q} --settings {params.settings:q} --folder {params.folder:q}"
        " --read {params.read:q} --sources {input.sources:q} >{log:q} 2>&1"


rule mix_datasets:
    """Join the split files of a mixture's datasets."""
    input:
        data=INPUTS.of_members("<results>/data/{member}/{split}.parquet"),
        manifests=INPUTS.of_members("<results>/data/{member}/manifest.json"),
        script=code_inputs.script_path("mix_datasets"),
        code=code_inputs.imports("mix_datasets"),
    output:
        train="<results>/data/{dataset}/train.parquet",
        ppo="<results>/data/{dataset}/ppo.parquet",
        val="<results>/data/{dataset}/val.parquet",
        manifest="<results>/data/{dataset}/manifest.json",
    log:
        "<logs>/data/{dataset}/mix.log",
    wildcard_constraints:
        dataset=INPUTS.mixed,
    conda:
        "../../envs/base.yaml"
    params:
        names=INPUTS.members,
        folder=subpath(output.manifest, parent=True),
    shell:
        "python {input.script:q} --names {params.names:q} --manifests {input.manifests:q} --folder {params.folder:q}"
        " >{log:q} 2>&1"
