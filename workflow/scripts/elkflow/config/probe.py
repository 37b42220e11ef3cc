"""How a truth probe is fitted, selected, compared with controls and admitted as a reward model."""

from typing import Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from elkflow.config.base import Settings

ControlName = Literal[
    "majority", "word_overlap", "bag_of_words", "zero_shot", "random_directions", "shuffled_labels", "untrained_model"
]
Method = Literal["logistic", "mass_mean", "lda", "ccs", "vinc", "crc"]
Arm = Literal["random_direction", "shuffled_labels", "gold_labels"]


class LogisticSettings(Settings):
    """L2-penalised logistic regression."""

    l2: list[PositiveFloat] = Field(default=[0.001, 0.003, 0.01, 0.03, 0.1], min_length=1)
    """Penalties to try: lambda in mean loss + lambda/2 |w|^2 (scikit-learn's C is 1 / (lambda * rows))."""
    folds: int = Field(default=4, ge=2)
    """Folds of the cross-validation that chooses the penalty of each layer; groups stay together."""


class CcsSettings(Settings):
    """Contrast-consistent search."""

    restarts: PositiveInt = 10
    """Random restarts; the one with the lowest unsupervised loss is kept."""
    l2: NonNegativeFloat = 0.01
    """Weight decay lambda/2 |w|^2: without it the loss keeps falling as weights grow."""


class VincSettings(Settings):
    """Weights of VINC's three terms."""

    variance: NonNegativeFloat = 0.0
    """Reward for variance between questions."""
    invariance: NonNegativeFloat = 1.0
    """Penalty on variance between wordings of one question; without effect on a single wording."""
    negative_covariance: NonNegativeFloat = 1.0
    """Reward for negative covariance between the two members of a contrast pair."""


class GateSettings(Settings):
    """What a probe must achieve before a policy is trained on it."""

    margin: float = Field(default=0.05, ge=0, lt=0.5)
    """Required lead in AUROC over every control in `against`: the lower end of the lead's interval must exceed it."""
    against: list[ControlName] = [
        "majority",
        "word_overlap",
        "bag_of_words",
        "zero_shot",
        "random_directions",
        "shuffled_labels",
        "untrained_model",
    ]
    """Controls that the probe must beat. All controls are reported, whether listed here or not."""


class ProbeSettings(Settings):
    """One truth probe; `probes/{name}` becomes a reward model."""

    model: str
    """Model whose hidden states are read."""
    dataset: str
    """Dataset whose train split the probe is fitted on and whose val split it is reported on."""
    wording: str
    """Wording under which hidden states are read; rewards use it too."""
    variants: list[str] = []
    """Further wordings of the same questions: fitted together with the first, each with its own normalisation."""
    ensembling: Literal["none", "partial", "full"] = "partial"
    """What counts as one prediction. `full`: a question, its log-odds averaged over wordings; `partial`: a question
    under one wording; `none`: each member of each pair alone."""
    methods: list[Method] = Field(default=["logistic", "ccs"], min_length=1)
    """Methods to fit on every layer."""
    reward: Method | Literal["best"] = "best"
    """Which method becomes the reward model: a given one, or the best on the selection part."""
    layers: list[NonNegativeInt] | None = None
    """Layers to use (0 is the embeddings); unset: all."""
    selection: float = Field(default=0.25, gt=0, lt=1)
    """Share of train (whole groups) held out from fitting to select layer and method."""
    refit: bool = True
    """Refit every method on all of train at its selected layer. Not with `calibrate`, which needs rows that the
    direction was not fitted on."""
    normalise: Literal["full", "mean", "none"] = "full"
    """Per answer, wording and feature: subtract the mean and divide by the standard deviation, subtract only, or
    neither."""
    sign: Literal["labels", "model"] = "labels"
    """What determines the sign of an unsupervised direction: labels of the fit part, or the model's own zero-shot
    answers (no labels)."""
    calibrate: bool = False
    """Platt-scale the log-odds on the selection part; otherwise the reward is the sigmoid of the raw log-odds."""
    logistic: LogisticSettings = LogisticSettings()
    """Options of this method."""
    ccs: CcsSettings = CcsSettings()
    """Options of this method."""
    vinc: VincSettings = VincSettings()
    """Options of this method."""
    seed: NonNegativeInt = 0
    """Seed of the selection part, folds, restarts and random controls."""
    draws: int = Field(default=100, ge=2)
    """Number of random directions and of label shuffles in those controls."""
    gate: GateSettings = GateSettings()
    """What the probe must achieve."""
    arm: Arm | None = None
    """What takes the probe's place in the rewards, to tell what a policy owes to the truth in it: a random direction or
    one fitted on shuffled labels, on the same layer and as confident on average, or (`gold_labels`) the right answers
    with the probe's confidence. Needs `allow_weak_probe: true`."""
    allow_weak_probe: bool = False
    """Continue with a probe that fails its gate; the verdict then says so."""
    untrained: str | None = None
    """A model with random weights (see `untrained` in a model's section) whose hidden states serve as a further
    control."""
    transfer: list[str] = []
    """Other probes of this config, fitted on states of the same width, whose val rows this probe is tested on as
    well."""

    @field_validator("methods", "variants", "transfer")
    @classmethod
    def _named_once(cls, names: list[str]) -> list[str]:
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"{twice!r} is listed twice")
        return names

    @model_validator(mode="after")
    def _fits(self) -> "ProbeSettings":
        if self.reward != "best" and self.reward not in self.methods:
            raise ValueError(f"reward: {self.reward!r} is not among methods ({', '.join(self.methods)})")
        if self.wording in self.variants:
            raise ValueError(f"variants: {self.wording!r} is already the wording")
        if self.arm and not self.allow_weak_probe:
            raise ValueError("arm: a control in the probe's place fails its gate; set `allow_weak_probe: true` as well")
        if self.arm and self.calibrate:
            raise ValueError("arm: has the confidence of the probe as fitted; leave out `calibrate`")
        if self.layers is not None and (not self.layers or len(set(self.layers)) < len(self.layers)):
            raise ValueError("layers: give at least one, each once")
        return self

    def wordings(self) -> list[str]:
        """All wordings under which states are read, the main one first."""
        return [self.wording, *self.variants]

    def reward_wordings(self) -> list[str]:
        """Wordings used for rewards: all with full ensembling, else the main one."""
        return self.wordings() if self.ensembling == "full" else [self.wording]
