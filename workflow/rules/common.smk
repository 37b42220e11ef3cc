"""What every stage shares: the checked config, and the command line of scripts that use accelerators.

All rules files share one namespace, so they import modules, never functions, and only here.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys

from snakemake import exceptions

# This folder, not the main Snakefile's: another workflow may import this one as a module.
sys.path.insert(0, str(pathlib.Path(str(workflow.current_basedir)).parent / "scripts"))

from elkflow.common import code_inputs, errors, paths
from elkflow.orchestration import (
    future_timestamps,
    job_lines,
    preflight,
    rule_inputs,
    run_start,
    slurm,
    snakemake_lock,
)

try:
    CONFIG = preflight.load(config, files=workflow.is_main_process)
except errors.UserError as error:
    raise exceptions.WorkflowError(f"config: {error}")

INPUTS = rule_inputs.RuleInputs(CONFIG)
RESULTS = pathlib.Path(workflow.pathvars.apply("<results>"))


def prepare():
    """What a run does before Snakemake looks at files; whatever only reads the rules does nothing of it."""
    snakemake_lock.drop_stale()  # of a run that was killed, so that starting again is all it takes
    future_timestamps.settle(RESULTS)
    job_lines.show_job_lines(workflow)


if workflow.is_main_process:
    run_start.before_run(workflow, prepare)


onstart:
    snakemake_lock.hold()
    if workflow.executor_plugin.name == "slurm":
        slurm.cancel_orphans()
        slurm.tolerate_silence(sys.modules["snakemake_executor_plugin_slurm"])


onerror:
    slurm.show_failures(log)


wildcard_constraints:
    model="|".join(CONFIG.names("models")),
    dataset="|".join(CONFIG.names("datasets")),
    probe="|".join(CONFIG.names("probes")),
    # not the names of the runs: Snakemake carries a constraint's text through every path, and a sweep has a thousand
    run="[^/]+",
    suite="|".join(CONFIG.names("evaluation/suites")),
    split="train|ppo|val",
    seed=r"\d+",


# What `--cores` allows; one where it is not asked for (graphs, reports) or not local (clusters: see the profile).
CORES = workflow.resource_settings.cores or 1


def launched(arguments):
    """A script's command line: one process a GPU, or `processes` on the CPU, which share its work under accelerate.

    accelerate starts several processes under --multi_gpu only; told to use the CPU, they do so there too. A single
    process starts without the launcher, which takes seconds to load and changes nothing for it.
    """
    return (
        "export ACCELERATE_USE_CPU=$([ {resources.gpu} -gt 0 ] && echo false || echo true)"
        " OMP_NUM_THREADS=$(( ({threads} + {resources.processes} - 1) / {resources.processes} ));"
        " $([ {resources.processes} -gt 1 ] && echo accelerate launch --multi_gpu --main_process_port 0"
        " --num_processes {resources.processes} --num_machines 1 --mixed_precision no --dynamo_backend no"
        " || echo python)"
        f" {arguments}"
    )


def answers_in(folder):
    """Output files of every suite, each under a name of its own: `snakemake --cache` needs it so."""
    files = {
        "results": "results.json",
        "samples": "samples.parquet",
        "manifest": "manifest.json",
    }
    return {
        f"{kind}_{number}": f"{folder}/{suite}/{file}"
        for kind, file in files.items()
        for number, suite in enumerate(INPUTS.suites)
    }


def in_report(name, ending, category, title):
    """An output of the summary with its place and caption in the report (one label: of two it makes switches)."""
    return report(
        f"<results>/summary/{name}.{ending}",
        caption=f"../report/{name}.rst",
        category=category,
        labels={"result": title},
    )


def show_verdict():
    """Print the verdict's short table, if there is a verdict yet."""
    verdict = RESULTS / "summary" / "verdict.json"
    if verdict.is_file():
        subprocess.run(
            [
                sys.executable,
                code_inputs.script_path("show_verdict"),
                "--verdict",
                verdict,
            ],
            check=False,
        )
