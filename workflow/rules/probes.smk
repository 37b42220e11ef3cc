"""Stage 4: truth probes.

Needs the hidden states of contrast pairs (train, val) under every wording of the probe, their prompts, and the source
rows (controls read their text).
Makes, under <results>/probes/{probe}/: probe.safetensors and probe.json (the reward model), layers.csv (every method on
every layer), methods.csv (each at its chosen layer), controls.csv, wordings.csv, datasets.csv (of a mixture, each
dataset in it), scores.parquet (log-odds of every val row) and manifest.json. The rule fails if the probe does not lead
its controls, unless the config lets it.
Where the config asks for it also transfer.csv: the probe on the val rows of others.
"""


rule train_probe:
    """Fit every method on every layer, choose on one part of train, report on val, compare with controls."""
    input:
        train_rows=filled("probes/{probe}", "<results>/data/{dataset}/train.parquet"),
        val_rows=filled("probes/{probe}", "<results>/data/{dataset}/val.parquet"),
        train_prompts=of_wordings(
            "<results>/prompts/{model}/{dataset}/{wording}/train.parquet"
        ),
        val_prompts=of_wordings(
            "<results>/prompts/{model}/{dataset}/{wording}/val.parquet"
        ),
        train_states=ancient(
            of_wordings(
                "<results>/hiddens/{model}/{dataset}/{wording}/train.safetensors"
            )
        ),
        val_states=ancient(
            of_wordings(
                "<results>/hiddens/{model}/{dataset}/{wording}/val.safetensors"
            )
        ),
        train_lineage=of_wordings(
            "<results>/hiddens/{model}/{dataset}/{wording}/train.manifest.json"
        ),
        val_lineage=of_wordings(
            "<results>/hiddens/{model}/{dataset}/{wording}/val.manifest.json"
        ),
        untrained_prompts=of_untrained(
            "<results>/prompts/{model}/{dataset}/{wording}/{split}.parquet"
        ),
        untrained_states=ancient(
            of_untrained(
                "<results>/hiddens/{model}/{dataset}/{wording}/{split}.safetensors"
            )
        ),
        untrained_lineage=of_untrained(
            "<results>/hiddens/{model}/{dataset}/{wording}/{split}.manifest.json"
        ),
        script=script_path("train_probe"),
        code=imports("train_probe"),
    output:
        probe="<results>/probes/{probe}/probe.safetensors",
        facts="<results>/probes/{probe}/probe.json",
        layers=ensure("<results>/probes/{probe}/layers.csv", non_empty=True),
        methods="<results>/probes/{probe}/methods.csv",
        controls=ensure("<results>/probes/{probe}/controls.csv", non_empty=True),
        wordings="<results>/probes/{probe}/wordings.csv",
        datasets="<results>/probes/{probe}/datasets.csv",
        scores="<results>/probes/{probe}/scores.parquet",
        manifest="<results>/probes/{probe}/manifest.json",
    log:
        "<logs>/probes/{probe}/train.log",
    benchmark:
        "<benchmarks>/probes/{probe}/train.tsv"
    conda:
        "../../envs/train.yaml"
    threads: CORES
    params:
        settings=settings("probes/{probe}"),
    shell:
        "python {input.script:q} --settings {params.settings:q}"
        " --train-rows {input.train_rows:q} --val-rows {input.val_rows:q}"
        " --train-prompts {input.train_prompts:q} --val-prompts {input.val_prompts:q}"
        " --train-states {input.train_states:q} --val-states {input.val_states:q}"
        " --untrained-prompts {input.untrained_prompts:q} --untrained-states {input.untrained_states:q}"
        " --lineage {input.train_lineage:q} {input.val_lineage:q} {input.untrained_lineage:q}"
        ' --output "$(dirname {output.facts:q})" >{log:q} 2>&1'


rule transfer_probe:
    """Test a probe on the val rows of the probes its config names: a row of the transfer matrix."""
    input:
        probe="<results>/probes/{probe}/probe.json",
        weights="<results>/probes/{probe}/probe.safetensors",
        of_probe="<results>/probes/{probe}/manifest.json",
        prompts=of_targets("<results>/prompts/{model}/{dataset}/{wording}/val.parquet"),
        states=ancient(
            of_targets("<results>/hiddens/{model}/{dataset}/{wording}/val.safetensors")
        ),
        lineage=of_targets(
            "<results>/hiddens/{model}/{dataset}/{wording}/val.manifest.json"
        ),
        script=script_path("transfer_probe"),
        code=imports("transfer_probe"),
    output:
        table=ensure("<results>/probes/{probe}/transfer.csv", non_empty=True),
        manifest="<results>/probes/{probe}/transfer.manifest.json",
    log:
        "<logs>/probes/{probe}/transfer.log",
    conda:
        "../../envs/train.yaml"
    params:
        settings=settings("probes/{probe}"),
        names=lambda wildcards: [
            wildcards.probe,
            *CONFIG.probes[wildcards.probe].transfer,
        ],
    shell:
        'python {input.script:q} --settings {params.settings:q} --probe "$(dirname {input.probe:q})"'
        " --names {params.names:q} --prompts {input.prompts:q} --states {input.states:q}"
        " --lineage {input.of_probe:q} {input.lineage:q}"
        " --output {output.table:q} --manifest {output.manifest:q} >{log:q} 2>&1"
