"""The whole config: parsed once when the workflow starts, and checked before any job runs."""

import re
from collections.abc import Collection, Mapping
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from elkflow.common.errors import UserError, validation_message
from elkflow.config.base import Settings
from elkflow.config.data import DatasetSettings
from elkflow.config.evaluation import EvaluationSettings
from elkflow.config.model import ModelSettings
from elkflow.config.ppo import RunSettings
from elkflow.config.probe import ProbeSettings
from elkflow.config.sweeps import expand_sweeps

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]{0,199}")


class Config(Settings):
    """Named models, datasets, probes and runs, and how the results are evaluated."""

    models: dict[str, ModelSettings] = Field(min_length=1)
    """Language models: those whose hidden states are read, and those that are fine-tuned."""
    datasets: dict[str, DatasetSettings] = Field(min_length=1)
    """Labelled question sets."""
    probes: dict[str, ProbeSettings] = Field(min_length=1)
    """Truth probes; each becomes a reward model."""
    runs: dict[str, RunSettings] = Field(min_length=1)
    """Fine-tuning runs. A list where one value is expected makes one run per value."""
    evaluation: EvaluationSettings
    """What base and tuned models are evaluated on."""

    @classmethod
    def load(cls, raw: Mapping[str, Any]) -> Self:
        """Check a parsed YAML config and expand its sweeps.

        Raises:
            UserError: the first problem, with its key and what was expected.
        """
        content = {key: value for key, value in raw.items() if key != "pathvars"}
        try:
            if isinstance(content.get("runs"), Mapping):
                content["runs"] = dict(expand_sweeps(content["runs"]))
            return cls.model_validate(content)
        except RecursionError:
            raise UserError("a section contains itself (a YAML alias inside its own anchor?)") from None
        except ValidationError as error:
            raise UserError(validation_message(error, cls)) from None

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        for kind in ("models", "datasets", "probes", "runs", "evaluation/suites"):
            for name in self.section(kind):
                if not NAME_PATTERN.fullmatch(name):
                    raise ValueError(f"{kind}: {name!r:.80} is not a valid name; use letters, digits and . _ = + -")
        for name, dataset in self.datasets.items():
            if dataset.mixture is not None:
                self._mixture_fits(name, dataset.mixture)
        for name, probe in self.probes.items():
            _check_known(f"probes.{name}.model", probe.model, self.models)
            _check_known(f"probes.{name}.dataset", probe.dataset, self.datasets)
            for wording in probe.wordings():
                _check_known(f"probes.{name}: wording", wording, self.wordings(probe.dataset))
            if probe.untrained is not None:
                _check_known(f"probes.{name}.untrained", probe.untrained, self.models)
            for other in probe.transfer:
                _check_known(f"probes.{name}.transfer", other, self.probes)
        for name, run in self.runs.items():
            _check_known(f"runs.{name}.policy", run.policy, self.models)
            _check_known(f"runs.{name}.probe", run.probe, self.probes)
            _check_known(f"runs.{name}.dataset", run.dataset, self.datasets)
            _check_known(f"runs.{name}.wording", run.wording, self.wordings(run.dataset))
            for wording in self.evaluation.wordings():
                _check_known(f"evaluation.suites: wording for run {name}", wording, self.wordings(run.dataset))
            for other in self.evaluation.off_domain:
                _check_known("evaluation.off_domain", other, self.probes)
                if (read := self.probes[other].model) != run.policy:
                    raise ValueError(f"evaluation.off_domain: {other!r} reads {read}, run {name} tunes {run.policy}")
        return self

    def _mixture_fits(self, name: str, members: list[str]) -> None:
        """Check that members are plain datasets from different sources, and share a wording."""
        sources: dict[str, str] = {}
        for member in members:
            _check_known(
                f"datasets.{name}.mixture", member, [other for other in self.datasets if other not in self.mixtures()]
            )
            source = self.datasets[member].source()
            if sources.setdefault(source, member) != member:
                raise ValueError(
                    f"datasets.{name}.mixture: {sources[source]!r} and {member!r} have the same source, so training"
                    " rows could also be evaluated on"
                )
        if not self.wordings(name):
            raise ValueError(f"datasets.{name}.mixture: its datasets have no wording of the same name in common")
        for wording in self.wordings(name):
            asked = [self.datasets[member].wordings[wording] for member in members]
            if len({each.about and each.template for each in asked}) > 1:
                raise ValueError(
                    f"datasets.{name}.mixture: {wording!r} asks about answers in some of its datasets only, or by"
                    " different templates"
                )

    def mixtures(self) -> list[str]:
        """Datasets that are mixtures of others."""
        return [name for name, dataset in self.datasets.items() if dataset.mixture is not None]

    def wordings(self, dataset: str) -> list[str]:
        """Wordings of a dataset; for a mixture, those that all its members have."""
        members = [self.datasets[name] for name in self.datasets[dataset].mixture or [dataset]]
        return [name for name in members[0].wordings if all(name in member.wordings for member in members)]

    def names(self, kind: str) -> list[str]:
        """Names as regular expressions, for wildcard constraints."""
        return [re.escape(name) for name in self.section(kind)]

    def section(self, path: str) -> Any:
        """The settings at `path`, e.g. `runs/quickstart/ppo`.

        Raises:
            UserError: the config has no such entry.
        """
        found: Any = self
        for part in path.split("/"):
            if isinstance(found, Mapping):
                if part not in found:
                    raise UserError(f"{path}: the config has no {part!r}, only {', '.join(list(found)[:20])}")
                found = found[part]
            else:
                found = getattr(found, part)
        return found


def _check_known(key: str, name: str, among: Collection[str]) -> None:
    if name not in among:
        raise ValueError(f"{key}: {name!r} is not among {', '.join(among) or 'those defined (none)'}")
