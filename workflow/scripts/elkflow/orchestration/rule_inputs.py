"""Inputs and parameters of rules that a pattern alone does not tell: functions of the config."""

import json
import os
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from elkflow.common.errors import UserError
from elkflow.common.paths import RESOURCES
from elkflow.config.config import Config
from elkflow.config.data import SPLITS, DatasetSettings, QuestionSettings
from elkflow.summary.plan import Plan

Wildcards = Mapping[str, str]
"""A job's wildcards. Snakemake's own class looks like a mapping: it has `keys`, `[]` and `get`."""
InputFunction = Callable[[Wildcards], list[str] | str]


class RuleInputs:
    """Input functions and parameters for the rules of one config.

    The methods named `of_...` take path patterns and return an input function, which fills them with the job's
    wildcards and what the config says about them. A pattern is filled several times where it has a field with several
    values. A single path is returned by itself, several as a list.

    Args:
        config: the whole config.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.plan = Plan.of(config)
        # Sorted, as the order they are written in decides nothing that is computed.
        self.suites = sorted(config.evaluation.suites)
        self.asked = sorted(config.evaluation.wordings())
        mixtures = config.mixtures()
        self.mixed = "|".join(map(re.escape, mixtures)) or "(?!)"
        """Wildcard constraint: datasets made of others (`(?!)` matches nothing)."""
        self.plain = "|".join(re.escape(name) for name in config.datasets if name not in mixtures) or "(?!)"
        """Wildcard constraint: datasets with a source of their own."""

    # ------------------------------------------------------------ input functions from patterns

    def of_run(self, *patterns: str) -> InputFunction:
        """Patterns with {policy}, {dataset}, {probe} and {wording} of the run {run}, and the {suite} that asks it.

        {asked} takes each wording that the evaluation asks, {probed} each that the run's probe reads.
        """

        def paths(wildcards: Wildcards) -> list[str] | str:
            values = self._names(wildcards)
            values["suite"] = self.config.evaluation.suite_of(values["wording"]) or ""
            probed = self.config.probes[values["probe"]].wordings()
            return _filled(patterns, values, asked=self.asked, probed=probed)

        return paths

    def of_probe(self, *patterns: str, rewarded: bool = False) -> InputFunction:
        """Patterns with {model} and {dataset} of the probe {probe}; {wording} takes each that the probe reads.

        Args:
            rewarded: only the wordings that its reward is read from.
        """

        def paths(wildcards: Wildcards) -> list[str] | str:
            probe = self.config.probes[wildcards["probe"]]
            wordings = probe.reward_wordings() if rewarded else probe.wordings()
            return _filled(patterns, self._names(wildcards), wording=wordings)

        return paths

    def of_untrained(self, pattern: str) -> InputFunction:
        """A pattern for train and val of the untrained model that a probe is compared with; nothing without one."""

        def paths(wildcards: Wildcards) -> list[str] | str:
            probe = self.config.probes[wildcards["probe"]]
            if probe.untrained is None:
                return []
            values = {"model": probe.untrained, "dataset": probe.dataset}
            return _filled([pattern], values, split=["train", "val"], wording=probe.wordings())

        return paths

    def of_targets(self, pattern: str) -> InputFunction:
        """A pattern with {model}, {dataset} and {wording} of a probe and of those whose val rows it is tested on."""

        def paths(wildcards: Wildcards) -> list[str] | str:
            return [pattern.format(**dict(self.config.probes[name])) for name in self.targets(wildcards)]

        return paths

    def of_members(self, pattern: str) -> InputFunction:
        """A pattern with each {member} of the mixture {dataset}, and with each {split}."""

        def paths(wildcards: Wildcards) -> list[str] | str:
            return _filled([pattern], self._names(wildcards), member=self.members(wildcards), split=SPLITS)

        return paths

    def of_trainings(self, *patterns: str) -> list[str]:
        """Patterns with every run, seed, {suite} and {asked} wording, and with the run's policy, dataset and probe."""
        found = (
            path
            for pattern in patterns
            for training in self._trainings
            for path in _list(_filled([pattern], training, suite=list(self.plan.suites), asked=self.asked))
        )
        return list(dict.fromkeys(found))

    # ------------------------------------------------------------ inputs

    def model_files(self, wildcards: Wildcards) -> list[str]:
        """The files of a model that is a local folder: a change in one of them fetches it anew."""
        folder = Path(self.config.models[wildcards["model"]].path or "")
        if folder == Path() or not folder.is_dir():
            return []
        return sorted(str(file) for file in folder.iterdir() if file.is_file())

    def source_files(self, wildcards: Wildcards) -> list[str]:
        """Local files and folders that a dataset's rows are read from."""
        return source_files(self.config.datasets[wildcards["dataset"]])

    def template_files(self, wildcards: Wildcards) -> list[str]:
        """Template files behind a dataset's wording."""
        return template_files(self.config.datasets[wildcards["dataset"]], wildcards["wording"])

    def reward_module(self, wildcards: Wildcards) -> list[str]:
        """The file of a run's own reward function; nothing where its rewards are looked up."""
        from elkflow.rewards import custom

        return custom.source_files(self.config.runs[wildcards["run"]].reward)

    def receipts(self, wildcards: Wildcards) -> list[str]:
        """What is left of every push of a dataset.

        Raises:
            UserError: none is to be pushed, or there is no token; nothing is even planned then.
        """
        named = [name for name, dataset in self.config.datasets.items() if dataset.push_to]
        if not named:
            raise UserError("push_datasets: no dataset of the config has a `push_to`")
        if not os.environ.get("HF_TOKEN"):
            raise UserError("push_datasets: HF_TOKEN is not set; pushing needs a token with write access")
        return [f"<results>/pushed/{name}.json" for name in named]

    # ------------------------------------------------------------ parameters

    def section(self, path: str) -> Callable[[Wildcards], Any]:
        """What the config says at `path`, sections as JSON: section("probes/{probe}"), section("models/{policy}").

        A section comes with its defaults, so that writing one of them down reruns nothing.
        """

        def value(wildcards: Wildcards) -> Any:
            found = self.config.section(path.format(**self._names(wildcards)))
            return found.model_dump_json() if hasattr(found, "model_dump_json") else found

        return value

    def model_source(self, wildcards: Wildcards) -> str:
        """As JSON, what decides a model's weights: a change of dtype or chat fetches nothing anew."""
        return self.config.models[wildcards["model"]].source()

    def chat(self, wildcards: Wildcards) -> str:
        """As JSON, how a model's prompts are wrapped."""
        return self.config.models[wildcards["model"]].model_dump_json(
            include={"chat", "system_prompt", "chat_arguments", "trust_remote_code"}
        )

    def questions(self, wildcards: Wildcards) -> str:
        """As JSON, what decides a dataset's splits."""
        return self.config.datasets[wildcards["dataset"]].questions().model_dump_json()

    def fields_read(self, wildcards: Wildcards) -> list[str]:
        """What the wordings of a dataset read: the fields of each, joined by commas; no set that holds another one.

        Rows that are the same in a smaller set are the same to every wording that reads more.
        """
        from elkflow.prompts.templates import load_template

        wordings = self.config.datasets[wildcards["dataset"]].wordings.values()
        read = {frozenset(load_template(each.about or each.template).fields) - {"label"} for each in wordings}
        return sorted(
            ",".join(sorted(each)) for each in read if each and not any(other < each for other in read if other)
        )

    def rendering(self, wildcards: Wildcards) -> str:
        """As JSON, how a dataset's questions become prompts."""
        return self.config.datasets[wildcards["dataset"]].rendering(wildcards["wording"]).model_dump_json()

    def licence(self, wildcards: Wildcards) -> str:
        """A dataset's licence, for its card."""
        return self.config.datasets[wildcards["dataset"]].licence or "not stated"

    def hub_datasets(self) -> str:
        """As JSON, the datasets that come from the hub."""
        found = {name: dataset for name, dataset in self.config.datasets.items() if dataset.hub is not None}
        return json.dumps({name: dataset.questions().model_dump(mode="json") for name, dataset in found.items()})

    def members(self, wildcards: Wildcards) -> list[str]:
        """The datasets that a mixture is made of."""
        return self.config.datasets[wildcards["dataset"]].mixture or []

    def targets(self, wildcards: Wildcards) -> list[str]:
        """A probe, and those whose val rows it is tested on."""
        return [wildcards["probe"], *self.config.probes[wildcards["probe"]].transfer]

    def _names(self, wildcards: Wildcards) -> dict[str, str]:
        """The wildcards, and the names in the sections of their run and probe."""
        given = dict(wildcards)
        values: dict[str, str] = {}
        if "probe" in given:
            probe = self.config.section(f"probes/{given['probe']}")
            values |= {"model": probe.model, "dataset": probe.dataset}
        if "run" in given:
            run = self.config.section(f"runs/{given['run']}")
            values |= {"policy": run.policy, "dataset": run.dataset, "probe": run.probe, "wording": run.wording}
        return values | given

    @cached_property
    def _trainings(self) -> list[dict[str, Any]]:
        return [training.model_dump() for training in self.plan.trainings()]


def _filled(patterns: Any, values: Mapping[str, Any], **several: Any) -> list[str] | str:
    """Each pattern filled with `values`, once for each value of those of the `several` fields that it has."""
    found = []
    for pattern in patterns:
        fields = [name for name in several if f"{{{name}}}" in pattern]
        for chosen in product(*(several[name] for name in fields)):
            found.append(pattern.format_map({**values, **dict(zip(fields, chosen, strict=True))}))
    return found[0] if len(found) == 1 else found


def _list(paths: list[str] | str) -> list[str]:
    return [paths] if isinstance(paths, str) else paths


def source_files(settings: QuestionSettings) -> list[str]:
    """Local files and folders that the rows are read from."""
    facts = settings.facts
    if facts is None:
        return settings.local_files()
    own = [] if facts.table else [os.path.relpath(RESOURCES / f"{facts.topic}.csv")]
    return [*own, os.path.relpath(RESOURCES / f"{facts.topic}.yaml"), *settings.local_files()]


def template_files(settings: DatasetSettings, wording: str) -> list[str]:
    """Template files behind one wording."""
    from elkflow.prompts.templates import locate_template

    chosen = settings.wordings[wording]
    names = [name for name in (chosen.template, chosen.about) if name]
    return list(dict.fromkeys(os.path.relpath(locate_template(name)[0]) for name in names))
