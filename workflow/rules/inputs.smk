"""Where rules' inputs come from when a pattern alone does not say: functions of the config, shared by the stages."""

import re

from elkflow.summary.plan import Plan

# Sorted, as the order they are written in decides nothing that is computed.
SUITES = sorted(CONFIG.evaluation.suites)
WORDINGS = sorted(CONFIG.evaluation.wordings())
PLAN = Plan.of(CONFIG)
# Datasets made of others, and those with a source of their own, as wildcard constraints (`(?!)` matches nothing).
MIXED = "|".join(map(re.escape, CONFIG.mixtures())) or "(?!)"
PLAIN = "|".join(
    re.escape(name) for name in CONFIG.datasets if name not in CONFIG.mixtures()
)


def receipts(wildcards):
    """Receipts of all datasets that have a `push_to`; without a token nothing is even planned."""
    named = [name for name, dataset in CONFIG.datasets.items() if dataset.push_to]
    if not named:
        raise WorkflowError("push_datasets: no dataset of the config has a `push_to`")
    if not os.environ.get("HF_TOKEN"):
        raise WorkflowError(
            "push_datasets: HF_TOKEN is not set; pushing needs a token with write access"
        )
    return collect("<results>/pushed/{dataset}.json", dataset=named)


def checkout_files(wildcards):
    """The files of a model that is a local folder: a change in one of them fetches it anew."""
    folder = Path(CONFIG.models[wildcards.model].path or "")
    if folder == Path() or not folder.is_dir():
        return []
    return sorted(str(file) for file in folder.iterdir() if file.is_file())


def of_members(pattern):
    """Input function: `pattern` filled for the datasets of a mixture, and for every {split} where it has one."""

    def paths(wildcards):
        splits = ["train", "ppo", "val"] if "{split}" in pattern else [None]
        return [
            pattern.format(member=member, split=split, **dict(wildcards))
            for member in CONFIG.datasets[wildcards.dataset].mixture
            for split in splits
        ]

    return paths


def of_wordings(pattern, first_only=False):
    """Input function: `pattern` filled for each wording of a probe (or those its reward is read from)."""

    def paths(wildcards):
        probe = CONFIG.probes[wildcards.probe]
        wordings = probe.reward_wordings() if first_only else probe.wordings()
        values = {"model": probe.model, "dataset": probe.dataset} | dict(wildcards)
        return [pattern.format(wording=wording, **values) for wording in wordings]

    return paths


def of_untrained(pattern):
    """Input function: `pattern` filled for train and val of the untrained model, if the probe is compared with one."""

    def paths(wildcards):
        probe = CONFIG.probes[wildcards.probe]
        return [
            pattern.format(
                model=probe.untrained,
                dataset=probe.dataset,
                wording=wording,
                split=split,
            )
            for split in ("train", "val")
            for wording in probe.wordings()
            if probe.untrained is not None
        ]

    return paths


def of_targets(pattern):
    """Input function: `pattern` filled for a probe and those whose val rows it is tested on."""

    def paths(wildcards):
        names = [wildcards.probe, *CONFIG.probes[wildcards.probe].transfer]
        return [pattern.format(**dict(CONFIG.probes[name])) for name in names]

    return paths


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
        for number, suite in enumerate(SUITES)
    }


def of_run(*patterns):
    """Input function: the patterns filled with a run's wildcards and names, and with each {wording} of the suites.

    {trained} is the wording it is trained on, {suite} the suite that asks it.
    """

    def paths(wildcards):
        run = CONFIG.runs[wildcards.run]
        values = dict(wildcards) | {
            name: getattr(run, name) for name in ("policy", "dataset", "probe")
        }
        values |= {
            "trained": run.wording,
            "suite": CONFIG.evaluation.suite_of(run.wording),
        }
        return [
            pattern.format(**values, wording=wording)
            for pattern in patterns
            for wording in (WORDINGS if "{wording}" in pattern else [None])
        ]

    return paths


def of_trainings(pattern):
    """`pattern` filled with every run, seed and suite, and with the run's own policy, dataset and probe."""
    paths = (
        pattern.format(
            suite=suite, wording=wording, **training.model_dump(exclude={"wording"})
        )
        for training in PLAN.trainings()
        for suite in PLAN.suites
        for wording in CONFIG.evaluation.wordings()
    )
    return list(dict.fromkeys(paths))


def in_report(name, ending, category, title):
    """An output of the summary with its place and caption in the report (one label: of two it makes switches)."""
    return report(
        f"<results>/summary/{name}.{ending}",
        caption=f"../report/{name}.rst",
        category=category,
        labels={"result": title},
    )


def tuned_states(split, ending):
    """Input function: a file of the tuned model's states for each wording of the run's probe."""

    def paths(wildcards):
        wordings = CONFIG.probes[CONFIG.runs[wildcards.run].probe].wordings()
        pattern = f"<results>/hiddens_tuned/{wildcards.run}/seed{wildcards.seed}/{{wording}}/{split}.{ending}"
        return [pattern.format(wording=wording) for wording in wordings]

    return paths


def tuned_prompts(split):
    """Input function: the prompts behind those states."""

    def paths(wildcards):
        run = CONFIG.runs[wildcards.run]
        folder = f"<results>/prompts/{run.policy}/{run.dataset}"
        return [
            f"{folder}/{wording}/{split}.parquet"
            for wording in CONFIG.probes[run.probe].wordings()
        ]

    return paths
