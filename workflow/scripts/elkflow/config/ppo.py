"""How a policy is fine-tuned on a reward: the run, its algorithm and every hyperparameter."""

from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from elkflow.config.base import Settings

Fraction = Annotated[float, Field(ge=0, le=1)]


def _module_names(given: object) -> object:
    """`q,v` and `q_proj,v_proj` as a list of module names."""
    if not isinstance(given, str) or given == "all-linear":
        return given
    short = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj", "gate": "gate_proj", "up": "up_proj"}
    short["down"] = "down_proj"
    return [short.get(name.strip(), name.strip()) for name in given.split(",")]


class LoRASettings(Settings):
    """Low-rank adapters (Hu et al., 2021)."""

    rank: PositiveInt = 16
    """Rank of each update."""
    alpha: PositiveFloat = 32
    """The update is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout in front of each adapter, while training."""
    targets: Annotated[Literal["all-linear"] | list[str], BeforeValidator(_module_names)] = Field(
        default=["q_proj", "v_proj"], min_length=1
    )
    """Module names, `q,v` for short, or `all-linear`."""


class KLSettings(Settings):
    """The penalty on moving away from the reference policy, which is the policy without its adapter."""

    coefficient: NonNegativeFloat = 0.02
    """Weight of the penalty in the reward; where it starts, if it moves."""
    control: Literal["fixed", "adaptive", "linear"] = "fixed"
    """`adaptive`: steered to `target` (Ziegler et al., 2019). `linear`: straight to `final` over the run."""
    target: PositiveFloat = 6.0
    """KL (nats a response) that `adaptive` steers to."""
    horizon: PositiveFloat = 10_000
    """Responses over which `adaptive` corrects an error of one."""
    final: NonNegativeFloat = 0.0
    """Coefficient that `linear` ends at."""
    estimator: Literal["k1", "k2", "k3"] = "k1"
    """Estimate used in the penalty; k1 and k3 are logged whatever is chosen."""


class SentinelSettings(Settings):
    """What counts as a collapse. Any limit set to null is not watched."""

    window: PositiveInt = 3
    """Steps in a row that must look bad."""
    valid: Fraction | None = 0.3
    """Share of allowed answers below which a policy has collapsed, once it has been above."""
    reward_drop: PositiveFloat | None = 0.3
    """Fall of the mean reward from its best running mean (on the reward's own scale)."""
    entropy: NonNegativeFloat | None = None
    """Entropy of the allowed answers' distribution, in nats, below which it has collapsed."""
    yes_rate: Fraction | None = None
    """Distance of the yes-rate from 0 or 1 below which a policy says the same to everything."""
    kl: PositiveFloat | None = 50.0
    """KL from the reference, nats a response."""
    action: Literal["stop", "lower_rate"] = "stop"
    """After restoring the last good checkpoint: stop with a verdict, or go on once at a tenth of the learning rate."""


class PPOSettings(Settings):
    """Every hyperparameter. Batch sizes count prompts over all processes, so adding GPUs changes none of them."""

    # what is trained
    train: Literal["lora", "layers", "full"] = "lora"
    """`lora`: adapters; `layers`: the weights of the top `layers` blocks; `full`: every weight."""
    layers: PositiveInt | Literal["all"] = "all"
    """Train the top so many blocks only. What lies below runs once a step, whatever `epochs` says."""
    lora: LoRASettings = LoRASettings()
    """Shape of the adapters, for `train: lora`."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    # optimisation
    learning_rate: PositiveFloat = 1e-3
    """Of AdamW."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after warm-up: as it is, or down to zero at the end."""
    warmup: NonNegativeInt = 0
    """Steps over which the learning rate rises."""
    weight_decay: NonNegativeFloat = 0.0
    """Of AdamW, on everything trained."""
    max_gradient_norm: PositiveFloat | None = 1.0
    """Longer gradients are shortened to this."""

    # amounts
    steps: PositiveInt | None = None
    """Rollout batches to train on. Give this or `epochs`."""
    epochs: PositiveFloat | None = None
    """Passes over the prompts, instead of `steps`."""
    batch_size: PositiveInt = 64
    """Prompts in a rollout."""
    generations: int = Field(default=8, ge=2)
    """rloo and grpo only: responses to every prompt, compared with each other; the batch size counts responses."""
    minibatch_size: PositiveInt | None = None
    """Prompts in an optimiser step; unset: all of the batch."""
    accumulation: PositiveInt = 1
    """Forward passes an optimiser step is divided into, to save memory; the update stays the same."""

    # PPO
    ppo_epochs: PositiveInt = 2
    """Passes over each rollout."""
    clip: PositiveFloat = 0.2
    """Ratios of new to old probability are clipped to 1 ± this."""
    value_clip: PositiveFloat | None = 0.2
    """Values are clipped to this distance from those of the rollout; unset: not at all."""
    value_coefficient: NonNegativeFloat = 0.1
    """Weight of the value loss."""
    entropy_coefficient: NonNegativeFloat = 0.0
    """Weight of an entropy bonus."""
    gamma: Fraction = 1.0
    """Discount a token."""
    gae_lambda: Fraction = 0.95
    """Between one-step advantages (0) and returns minus values (1)."""
    whiten_advantages: bool = True
    """Shift and scale a rollout's advantages to mean 0, variance 1."""
    whiten_rewards: bool = False
    """Scale a rollout's token rewards to variance 1; their mean stays."""
    reward_baseline: float = 0.0
    """Subtracted from every reward."""
    target_kl: PositiveFloat | None = None
    """Stop a rollout's epochs once the policy has moved this far from where it sampled (thesis: 0.1)."""
    kl: KLSettings = KLSettings()
    """Penalty on moving away from the reference."""

    # responses
    max_new_tokens: PositiveInt = 1
    """Longest response, in tokens; one ends earlier at the end-of-sequence token."""
    temperature: PositiveFloat = 1.0
    """Of sampling, and of every log-probability."""
    top_k: NonNegativeInt = 0
    """Sample among so many tokens only; 0: all."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample among the likeliest tokens that make up this much."""
    strip_punctuation: bool = True
    """Take white space and trailing punctuation off a response before it is scored."""
    invalid_reward: float = -1.0
    """Reward of anything but an allowed answer."""

    # keeping watch
    evaluate_every: PositiveInt = 4
    """Steps between greedy evaluations on held-out prompts."""
    evaluate_rows: PositiveInt = 128
    """Held-out prompts used for it (the first so many)."""
    evaluate_batch: PositiveInt = 64
    """Held-out prompts in one forward pass."""
    keep: Literal["best", "last"] = "best"
    """The adapter to keep: of the highest reward on held-out prompts, or the last."""
    checkpoint_every: PositiveInt = 4
    """Steps between checkpoints."""
    keep_checkpoints: PositiveInt = 2
    """Checkpoints kept beside the best."""
    sample_every: PositiveInt = 2
    """Steps between entries in the sample log."""
    sample_rows: PositiveInt = 8
    """Prompts and responses in an entry."""
    sentinel: SentinelSettings | None = SentinelSettings()
    """Collapse watch; null: none."""

    @model_validator(mode="after")
    def _amounts_fit(self) -> "PPOSettings":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps, epochs")
        minibatch = self.minibatch_size or self.batch_size
        if minibatch > self.batch_size or self.batch_size % minibatch:
            raise ValueError(f"minibatch_size: {minibatch} does not divide batch_size {self.batch_size}")
        if minibatch % self.accumulation:
            raise ValueError(f"accumulation: {self.accumulation} does not divide the {minibatch} rows of a minibatch")
        if self.train == "layers" and self.layers == "all":
            raise ValueError("layers: `train: layers` needs a number of blocks (or say `train: full`)")
        if self.train == "full" and self.layers != "all":
            raise ValueError("layers: `train: full` trains all of them (or say `train: layers`)")
        return self


class RunSettings(Settings):
    """One policy fine-tuned on one reward, once a seed."""

    policy: str
    """Model to fine-tune."""
    probe: str
    """Probe whose judgement is the reward."""
    dataset: str
    """Its `ppo` rows are trained on, its `val` rows evaluated."""
    wording: str
    """How the questions are put while training."""
    seeds: list[NonNegativeInt] = Field(default=[0], min_length=1)
    """Each makes a run of its own."""
    algorithm: Literal["ppo", "rloo", "grpo"] = "ppo"
    """`ppo` is ours, the others are TRL's trainers on the same reward."""
    reward: str = Field(default="table", pattern=r"^(table|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$")
    """`table`: every allowed answer scored beforehand; or your own `module:function`, called as
    `function(prompts, responses)`, which returns one number a response."""
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default=["tensorboard"])
    """Where figures go besides metrics.jsonl."""
    ppo: PPOSettings
    """Hyperparameters."""

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("seeds must differ")
        return seeds
