"""From a labelled dataset to a verdict: does reinforcement learning on a truth probe make a model say what it knows?"""

from snakemake import utils

utils.min_version("9.27")

if not workflow.config_settings.configfiles:

    configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/models.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/prompts.smk"
include: "workflow/rules/hiddens.smk"
include: "workflow/rules/probes.smk"
include: "workflow/rules/rewards.smk"
include: "workflow/rules/ppo.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/summary.smk"
include: "workflow/rules/publish.smk"


rule all:
    """The verdict, with everything it stands on."""
    default_target: True
    input:
        # all of it: with a file that an earlier run did not make, Snakemake looks for no other change
        rules.summarise.output,


onsuccess:
    show_verdict()
