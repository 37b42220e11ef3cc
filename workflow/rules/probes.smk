"""Stage 4: truth probes.

Needs the hidden states of contrast pairs (train, val) under every wording of the probe, their prompts, and the source
rows (controls read their text).
Makes, under <results>/probes/{probe}/: probe.safetensors and probe.json (the reward model), layers.csv (every method on
every layer), methods.csv (each at its chosen layer), controls.csv, wordings.csv, datasets.csv (of a mixture, each
dataset in it), scores.parquet (log-odds of every val row) and manifest.json. The rule fails if the probe does not lead
its controls, unless the config lets it.
Where the config asks for it also transfer.csv, the probe on the val rows of others, and, of every run's tuned model,
<results>/runs/{run}/seed{seed}/fresh_probe.json.
"""

OFF_DOMAIN = CONFIG.evaluation.off_domain


rule train_probe:
    """Fit every method on every layer, choose on one part of train, report on val, compare with controls."""
    input:
        train_rows=INPUTS.of_probe("<results>/data/{dataset}/train.parquet"),
        val_rows=INPUTS.of_probe("<results>/data/{dataset}/val.parquet"),
        train_prompts=INPUTS.of_probe(
            "<results>/prompts/{model}/{dataset}/{wording}/train.parquet"
        ),
        val_prompts=INPUTS.of_probe(
            "<results>/prompts/{model}/{dataset}/{wording}/val.parquet"
        ),
        train_states=ancient(
            INPUTS.of_probe(
                "<results>/hiddens/{model}/{dataset}/{wording}/train.safetensors"
            )
        ),
        val_states=ancient(
            INPUTS.of_probe(
                "<results>/hiddens/{model}/{dataset}/{wording}/val.safetensors"
            )
        ),
        train_lineage=INPUTS.of_probe(
            "<results>/hiddens/{model}/{dataset}/{wording}/train.manifest.json"
        ),
        val_lineage=INPUTS.of_probe(
            "<results>/hiddens/{model}/{dataset}/{wording}/val.manifest.json"
        ),
        untrained_prompts=INPUTS.of_untrained(
            "<results>/prompts/{model}/{dataset}/{wording}/{split}.parquet"
        ),
        untrained_states=ancient(
            INPUTS.of_untrained(
                "<results>/hiddens/{model}/{dataset}/{wording}/{split}.safetensors"
            )
        ),
        untrained_lineage=INPUTS.of_untrained(
            "<results>/hiddens/{model}/{dataset}/{wording}/{split}.manifest.json"
        ),
        script=code_inputs.script_path("train_probe"),
        code=code_inputs.imports("train_probe"),
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
        settings=INPUTS.section("probes/{probe}"),
        folder=subpath(output.facts, parent=True),
    shell:
        "python {input.script:q} --settings {params.settings:q}"
        " --train-rows {input.train_rows:q} --val-rows {input.val_rows:q}"
        " --train-prompts {input.train_prompts:q} --val-prompts {input.val_prompts:q}"
        " --train-states {input.train_states:q} --val-states {input.val_states:q}"
        " --untrained-prompts {input.untrained_prompts:q} --untrained-states {input.untrained_states:q}"
        " --lineage {input.train_lineage:q} {input.val_lineage:q} {input.untrained_lineage:q}"
        " --output {params.folder:q} >{log:q} 2>&1"


rule transfer_probe:
    """Test a probe on the val rows of the probes its config names: a row of the transfer matrix."""
    input:
        probe="<results>/probes/{probe}/probe.json",
        weights="<results>/probes/{probe}/probe.safetensors",
        of_probe="<results>/probes/{probe}/manifest.json",
        prompts=INPUTS.of_targets(
            "<results>/prompts/{model}/{dataset}/{wording}/val.parquet"
        ),
        states=ancient(
            INPUTS.of_targets(
                "<results>/hiddens/{model}/{dataset}/{wording}/val.safetensors"
            )
        ),
        lineage=INPUTS.of_targets(
            "<results>/hiddens/{model}/{dataset}/{wording}/val.manifest.json"
        ),
        script=code_inputs.script_path("transfer_probe"),
        code=code_inputs.imports("transfer_probe"),
    output:
        table=ensure("<results>/probes/{probe}/transfer.csv", non_empty=True),
        manifest="<results>/probes/{probe}/transfer.manifest.json",
    log:
        "<logs>/probes/{probe}/transfer.log",
    conda:
        "../../envs/train.yaml"
    params:
        settings=INPUTS.section("probes/{probe}"),
        names=INPUTS.targets,
        folder=subpath(input.probe, parent=True),
    shell:
        "python {input.script:q} --settings {params.settings:q} --probe {params.folder:q}"
        " --names {params.names:q} --prompts {input.prompts:q} --states {input.states:q}"
        " --lineage {input.of_probe:q} {input.lineage:q}"
        " --output {output.table:q} --manifest {output.manifest:q} >{log:q} 2>&1"


rule fresh_probe:
    """Read the tuned model with the frozen probe and with a fresh one: is the truth hidden, or kept?"""
    input:
        probe=INPUTS.of_run("<results>/probes/{probe}/probe.json"),
        weights=INPUTS.of_run("<results>/probes/{probe}/probe.safetensors"),
        probe_manifest=INPUTS.of_run("<results>/probes/{probe}/manifest.json"),
        train_prompts=INPUTS.of_run(
            "<results>/prompts/{policy}/{dataset}/{probed}/train.parquet"
        ),
        val_prompts=INPUTS.of_run(
            "<results>/prompts/{policy}/{dataset}/{probed}/val.parquet"
        ),
        train_states=ancient(
            INPUTS.of_run(
                "<results>/hiddens_tuned/{run}/seed{seed}/{probed}/train.safetensors"
            )
        ),
        val_states=ancient(
            INPUTS.of_run(
                "<results>/hiddens_tuned/{run}/seed{seed}/{probed}/val.safetensors"
            )
        ),
        train_lineage=INPUTS.of_run(
            "<results>/hiddens_tuned/{run}/seed{seed}/{probed}/train.manifest.json"
        ),
        val_lineage=INPUTS.of_run(
            "<results>/hiddens_tuned/{run}/seed{seed}/{probed}/val.manifest.json"
        ),
        off_domain=expand("<results>/probes/{probe}/probe.json", probe=OFF_DOMAIN),
        off_domain_lineage=expand(
            "<results>/probes/{probe}/manifest.json", probe=OFF_DOMAIN
        ),
        base_states=ancient(
            INPUTS.of_run(
                "<results>/hiddens/{policy}/{dataset}/{probed}/val.safetensors"
            )
            if OFF_DOMAIN
            else []
        ),
        base_lineage=(
            INPUTS.of_run(
                "<results>/hiddens/{policy}/{dataset}/{probed}/val.manifest.json"
            )
            if OFF_DOMAIN
            else []
        ),
        script=code_inputs.script_path("fresh_probe"),
        code=code_inputs.imports("fresh_probe"),
    output:
        figures="<results>/runs/{run}/seed{seed}/fresh_probe.json",
        manifest="<results>/runs/{run}/seed{seed}/fresh_probe.manifest.json",
    log:
        "<logs>/runs/{run}/seed{seed}/fresh_probe.log",
    benchmark:
        "<benchmarks>/runs/{run}/seed{seed}/fresh_probe.tsv"
    conda:
        "../../envs/train.yaml"
    threads: CORES
    params:
        settings=INPUTS.section("probes/{probe}"),
        policy=INPUTS.section("runs/{run}/policy"),
        folder=subpath(input.probe, parent=True),
    shell:
        "python {input.script:q} --settings {params.settings:q} --probe {params.folder:q}"
        " --policy {params.policy:q}"
        " --train-prompts {input.train_prompts:q} --val-prompts {input.val_prompts:q}"
        " --train-states {input.train_states:q} --val-states {input.val_states:q}"
        " --off-domain {input.off_domain:q} --base-states {input.base_states:q}"
        " --lineage {input.probe_manifest:q} {input.train_lineage:q} {input.val_lineage:q} {input.base_lineage:q}"
        " {input.off_domain_lineage:q}"
        " --output {output.figures:q} --manifest {output.manifest:q} >{log:q} 2>&1"
