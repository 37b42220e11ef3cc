"""Which results are compared: the part of the config that the summary needs, small enough for a command line."""

from typing import Any, Self

from pydantic import NonNegativeInt

from elkflow.config.base import Settings


class Group(Settings):
    """Runs that differ in hyperparameters only, as in a sweep, so that a thousand of them are a list of names."""

    runs: list[str]
    """Names of the runs."""
    policy: str
    """The model that is fine-tuned."""
    probe: str
    """The probe whose reward it is trained on."""
    dataset: str
    """The questions."""
    wording: str
    """How they are asked during training."""
    seeds: list[NonNegativeInt]
    """Each is one training."""


class Plan(Settings):
    """What to compare."""

    groups: list[Group]
    """All runs, grouped by everything but hyperparameters."""
    suites: dict[str, list[str]]
    """Suite to its wordings of the run's dataset; all other tasks measure general ability."""
    probes: list[str]
    """All probes, including those that no run uses."""
    transfer: list[str] = []
    """Probes also tested on the val rows of others."""
    wordings: bool = False
    """Whether a probe was fitted under several wordings."""
    licences: dict[str, str] = {}
    """Policy to its licence, where the config states it."""
    fresh_probe: bool = False
    """Whether a fresh probe was fitted on the tuned models' states."""
    without_rl: bool = False
    """Whether there are baselines without reinforcement learning."""
    alpha: float = 0.05
    """Significance level: differences with a Holm-corrected p-value above it are called noise."""

    @classmethod
    def of(cls, config: Any) -> Self:
        """The plan of an `elkflow.config.config.Config`."""
        groups: dict[tuple, list[str]] = {}
        for name, run in config.runs.items():
            key = (run.policy, run.probe, run.dataset, run.wording, tuple(run.seeds))
            groups.setdefault(key, []).append(name)
        return cls(
            groups=[
                Group(runs=names, policy=policy, probe=probe, dataset=dataset, wording=wording, seeds=list(seeds))
                for (policy, probe, dataset, wording, seeds), names in groups.items()
            ],
            suites={name: list(suite.wordings) for name, suite in config.evaluation.suites.items()},
            probes=list(config.probes),
            transfer=[name for name, probe in config.probes.items() if probe.transfer],
            wordings=any(probe.variants for probe in config.probes.values()),
            licences={
                name: model.licence
                for name, model in config.models.items()
                if model.licence and any(run.policy == name for run in config.runs.values())
            },
            fresh_probe=config.evaluation.fresh_probe,
            without_rl=bool(config.evaluation.without_rl)
            and all(config.evaluation.suite_of(run.wording) for run in config.runs.values()),
        )

    def trainings(self) -> list["Training"]:
        """Every run and seed."""
        return [
            Training(run=run, seed=seed, **group.model_dump(exclude={"runs", "seeds"}))
            for group in self.groups
            for run in group.runs
            for seed in group.seeds
        ]


class Training(Settings):
    """One run with one seed."""

    run: str
    """Its name."""
    seed: NonNegativeInt
    """Its seed."""
    policy: str
    """The model that is fine-tuned."""
    probe: str
    """The probe whose reward it is trained on."""
    dataset: str
    """The questions."""
    wording: str
    """How they are asked during training."""
