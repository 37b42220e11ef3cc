"""The hub: targets of their own, part of no stage.

`prefetch` brings all that the config needs of the hub to this machine, where there is a network, and notes the revisions
in <results>/prefetched.json. `push_datasets` sends the splits of every dataset that has a `push_to`, and leaves
<results>/pushed/{dataset}.json.
"""


rule prefetch:
    """Bring all that the config needs of the hub to this machine; then set HF_HUB_OFFLINE=1 for the rest."""
    input:
        models=collect("<results>/models/{model}/manifest.json", model=CONFIG.models),
        questions=(
            "<results>/evaluations/questions.json"
            if CONFIG.evaluation.fetched()
            else []
        ),
        script=code_inputs.script_path("prefetch"),
        code=code_inputs.imports("prefetch"),
    output:
        record="<results>/prefetched.json",
    log:
        "<logs>/prefetch.log",
    localrule: True
    conda:
        "../../envs/base.yaml"
    params:
        datasets=INPUTS.hub_datasets(),
    # shown as well as logged: it tells which revisions to pin
    shell:
        "python {input.script:q} --datasets {params.datasets:q} --record {output.record:q} 2>&1 | tee {log:q}"


rule push_datasets:
    """Send every dataset that has a `push_to` to the hub."""
    input:
        INPUTS.receipts,
    localrule: True


rule push_dataset:
    """Send one dataset's splits, manifest and card to the hub."""
    input:
        data=collect(
            "<results>/data/{{dataset}}/{split}.parquet", split=["train", "ppo", "val"]
        ),
        manifest="<results>/data/{dataset}/manifest.json",
        script=code_inputs.script_path("push_dataset"),
        code=code_inputs.imports("push_dataset"),
    output:
        receipt="<results>/pushed/{dataset}.json",
    log:
        "<logs>/pushed/{dataset}.log",
    localrule: True
    conda:
        "../../envs/base.yaml"
    params:
        repo=INPUTS.section("datasets/{dataset}/push_to"),
        licence=INPUTS.licence,
        folder=subpath(input.manifest, parent=True),
    shell:
        "python {input.script:q} --name {wildcards.dataset:q} --repo {params.repo:q} --licence {params.licence:q}"
        " --folder {params.folder:q} --receipt {output.receipt:q} >{log:q} 2>&1"
