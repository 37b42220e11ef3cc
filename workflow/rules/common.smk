"""What every stage shares: the checked config, and helpers that take rules' values from it."""

import os
import subprocess
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

# This folder, not the main Snakefile's: another workflow may import this one as a module.
WORKFLOW = Path(str(workflow.current_basedir)).parent
sys.path.insert(0, str(WORKFLOW / "scripts"))

from elkflow.orchestration.future_timestamps import settle
from elkflow.config.config import Config
from elkflow.common.errors import UserError
from elkflow.orchestration.preflight import preflight
from elkflow.orchestration.slurm import cancel_orphans, show_failures, tolerate_silence
from elkflow.orchestration.snakemake_lock import drop_stale, hold
from elkflow.common.memory import HUGE_PAGES
from elkflow.common.code_inputs import imports, script_path

# For the scripts, which are processes of their own.
for name, value in HUGE_PAGES.items():
    os.environ.setdefault(name, value)

try:
    CONFIG = Config.load(config)
    if workflow.is_main_process:
        preflight(CONFIG)
except UserError as error:
    raise WorkflowError(f"config: {error}")

if workflow.is_main_process:
    drop_stale()  # of a run that was killed, so that starting again is all it takes
    settle(Path(workflow.pathvars.apply("<results>")))


onstart:
    hold()
    if workflow.executor_plugin.name == "slurm":
        cancel_orphans()
        tolerate_silence(sys.modules["snakemake_executor_plugin_slurm"])


onerror:
    show_failures(log)


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


def settings(section):
    """The config section at `section` as JSON, wildcards filled: settings("probes/{probe}").

    It is the section after defaults, so that writing a default down reruns nothing.
    """
    return lambda wildcards: CONFIG.section(
        section.format(**wildcards)
    ).model_dump_json()


def filled(section, *patterns):
    """Paths after the patterns, filled from the wildcards and from the config section's own values."""

    def paths(wildcards):
        values = dict(CONFIG.section(section.format(**wildcards))) | dict(wildcards)
        found = [pattern.format(**values) for pattern in patterns]
        return found[0] if len(found) == 1 else found

    return paths


def show_verdict():
    """Print the verdict's short table, if there is a verdict yet."""
    verdict = Path(workflow.pathvars.apply("<results>/summary/verdict.json"))
    if verdict.is_file():
        subprocess.run(
            [sys.executable, script_path("show_verdict"), "--verdict", verdict],
            check=False,
        )
