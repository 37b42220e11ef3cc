"""How a policy is fine-tuned on a reward: the run, its algorithm and all hyperparameters."""

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
Weight = Annotated[float, Field(ge=0, le=1e6)]
"""Of a term of an objective; above, numbers overflow before anything is learnt."""
Count = Annotated[int, Field(gt=0, le=10**9)]


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
    """Updates are scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the input of each adapter, in training."""
    targets: Annotated[Literal["all-linear"] | list[str], BeforeValidator(_module_names)] = Field(
        default=["q_proj", "v_proj"], min_length=1
    )
    """Module names, `q,v` for short, or `all-linear`."""


class KLSettings(Settings):
    """The penalty on the KL divergence from the reference policy, which is the policy without its adapter."""

    coefficient: Weight = 0.02
    """Weight of the penalty in the reward; its initial value, unless `control` is `fixed`."""
    control: Literal["fixed", "adaptive", "linear"] = "fixed"
    """`adaptive`: adjusted to keep the KL at `target` (Ziegler et al., 2019). `linear`: annealed to `final` over the
    run."""
    target: PositiveFloat = 6.0
    """KL (nats per response) that `adaptive` aims for."""
    horizon: PositiveFloat = 10_000
    """Responses over which `adaptive` corrects an error of one."""
    final: Weight = 0.0
    """Coefficient at the end of `linear`."""
    estimator: Literal["k1", "k2", "k3"] = "k1"
    """Estimator used in the penalty; k1 and k3 are always logged."""


class SentinelSettings(Settings):
    """What counts as a collapse of the policy. Limits set to null are ignored."""

    window: PositiveInt = 3
    """Consecutive steps that must exceed a limit."""
    valid: Fraction | None = 0.3
    """Lowest share of allowed answers, once the share has been above it."""
    reward_drop: PositiveFloat | None = 0.3
    """Largest fall of the mean reward from its best running mean (in units of the reward)."""
    entropy: NonNegativeFloat | None = None
    """Lowest entropy of the distribution of allowed answers, in nats."""
    one_answer: Fraction | None = 0.98
    """Largest share of one allowed answer, while the rewards prefer that answer to at most nine questions in ten; for
    twice the window."""
    kl: PositiveFloat | None = 50.0
    """Largest KL from the reference, in nats per response."""
    action: Literal["stop", "lower_rate"] = "stop"
    """After restoring the last good checkpoint: stop with a verdict, or continue once at a tenth of the learning
    rate."""


class PPOSettings(Settings):
    """All hyperparameters. Batch sizes count prompts over all processes and do not depend on the number of GPUs."""

    # what is trained
    train: Literal["lora", "layers", "full"] = "lora"
    """`lora`: adapters; `layers`: the weights of the top `layers` blocks; `full`: every weight."""
    layers: PositiveInt | Literal["all"] = "all"
    """Train only this many of the top blocks. The frozen blocks below run once per step, however many `ppo_epochs`."""
    lora: LoRASettings = LoRASettings()
    """Adapters, for `train: lora`."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    # optimisation
    learning_rate: float = Field(default=1e-3, gt=0, le=1)
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after warm-up: constant, or decaying to zero at the end."""
    warmup: NonNegativeInt = 0
    """Steps of linear learning-rate warm-up."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay of AdamW, on all trained parameters."""
    max_gradient_norm: PositiveFloat | None = 1.0
    """Gradient-norm clipping threshold; null: no clipping."""

    # amounts
    steps: Count | None = None
    """Number of rollouts to train on. Give this or `epochs`."""
    epochs: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Passes over the prompts, instead of `steps`."""
    batch_size: Count = 64
    """Prompts per rollout."""
    generations: int = Field(default=8, ge=2)
    """RLOO and GRPO only: responses per prompt, compared with each other; the batch size then counts responses."""
    minibatch_size: PositiveInt | None = None
    """Prompts per optimiser step; unset: the whole batch."""
    accumulation: PositiveInt = 1
    """Microbatches per optimiser step, to save memory; the update is the same."""

    # PPO
    ppo_epochs: PositiveInt = 2
    """Optimisation epochs over each rollout."""
    actions: Literal["sampled", "all"] = "sampled"
    """`sampled`: one response per prompt, and a critic. `all`: every allowed answer counts with its probability, and
    the exact value takes the critic's place (expected policy gradients); needs a table of rewards."""
    warm_start: NonNegativeInt = 0
    """Steps, at a third of the learning rate, that first make all allowed answers equally likely, whatever their
    reward: gradients vanish where one answer has all the probability. With `actions: all`, or `algorithm: exact`, `sft`
    or `dpo`."""
    balance_coefficient: Weight = 0.0
    """Weight of KL(uniform over allowed answers || policy), for `actions: all`. Unlike that of an entropy bonus, its
    gradient does not vanish where one answer has all the probability."""
    clip: PositiveFloat = 0.2
    """Probability ratios (new to old policy) are clipped to 1 ± this."""
    clip_high: PositiveFloat | None = None
    """Upper limit instead: 1 + this. Larger than `clip` it lets unlikely answers grow (DAPO). For `actions: all`."""
    value_clip: PositiveFloat | None = 0.2
    """Values are clipped to within this distance of the rollout's; null: no clipping."""
    value_coefficient: Weight = 0.1
    """Weight of the value loss."""
    entropy_coefficient: Weight = 0.0
    """Weight of an entropy bonus."""
    gamma: Fraction = 1.0
    """Discount per token."""
    gae_lambda: Fraction = 0.95
    """λ of generalised advantage estimation: 0 gives one-step advantages, 1 returns minus values."""
    whiten_advantages: bool = True
    """Normalise a rollout's advantages to mean 0 and variance 1."""
    whiten_rewards: bool = False
    """Scale a rollout's token rewards to variance 1, keeping their mean."""
    reward_baseline: float = 0.0
    """Subtracted from every reward."""
    target_kl: PositiveFloat | None = None
    """Stop a rollout's epochs once the KL from the policy that sampled it exceeds this (thesis: 0.1)."""
    kl: KLSettings = KLSettings()
    """Penalty on the KL from the reference."""

    # responses
    max_new_tokens: Count = 1
    """Maximum length of a response, in tokens; it ends earlier at an end-of-sequence token."""
    temperature: PositiveFloat = 1.0
    """Temperature of sampling and of all log-probabilities."""
    top_k: NonNegativeInt = 0
    """Sample only from this many of the likeliest tokens; 0: all."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample only from the likeliest tokens whose probabilities add up to this."""
    strip_punctuation: bool = True
    """Strip white space and trailing punctuation from a response before it is scored."""
    invalid_reward: float = -1.0
    """Reward of a response that is not an allowed answer."""

    # monitoring
    evaluate_every: PositiveInt = 4
    """Steps between greedy evaluations on held-out prompts."""
    evaluate_rows: Count = 128
    """Number of held-out prompts: the first of val; with `keep: best` groups of ppo that are then not trained on, at
    most about a quarter of it."""
    evaluate_batch: PositiveInt = 64
    """Held-out prompts per forward pass."""
    keep: Literal["best", "last"] = "best"
    """Which adapter to keep: the one with the highest reward on held-out prompts, or the last. `best` does not look at
    val rows, which the verdict reports on (see `evaluate_rows`)."""
    checkpoint_every: PositiveInt = 4
    """Steps between checkpoints."""
    keep_checkpoints: PositiveInt = 2
    """Checkpoints to keep besides the best."""
    sample_every: PositiveInt = 2
    """Steps between entries in the sample log."""
    sample_rows: PositiveInt = 8
    """Prompts and responses per entry."""
    sentinel: SentinelSettings | None = SentinelSettings()
    """Collapse watch; null: off."""

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
            raise ValueError("layers: `train: layers` needs a number of blocks (or use `train: full`)")
        if self.warm_start and self.steps is not None and self.warm_start >= self.steps:
            raise ValueError(f"warm_start: {self.warm_start} of {self.steps} steps leave none to train in")
        if self.train == "full" and self.layers != "all":
            raise ValueError("layers: `train: full` trains all of them (or use `train: layers`)")
        return self


class RunSettings(Settings):
    """One policy fine-tuned on one reward, once per seed."""

    policy: str
    """Model to fine-tune."""
    probe: str
    """Probe that gives the reward."""
    dataset: str
    """Dataset whose `ppo` rows are trained on and whose `val` rows are evaluated on."""
    wording: str
    """Wording of the training prompts."""
    seeds: list[NonNegativeInt] = Field(default=[0], min_length=1)
    """Each seed makes its own run."""
    algorithm: Literal["ppo", "exact", "sft", "dpo", "rloo", "grpo"] = "ppo"
    """`ppo` is elkflow's own. `exact` fits, by forward KL, the known optimum of what PPO maximises (the reward less
    `kl.coefficient` times KL); `sft` fits the answer that the reward prefers; `dpo` prefers it to the others, with
    `kl.coefficient` as its beta: controls that need no RL, for a closed set of answers. `rloo` and `grpo` are TRL's
    trainers on the same reward."""
    reward: str = Field(default="table", pattern=r"^(table|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$")
    """`table`: the probe's scores of all allowed answers, computed beforehand; or your own `module:function`, called as
    `function(prompts, responses)`, which returns one number per response."""
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default=["tensorboard"])
    """Where metrics are logged besides metrics.jsonl."""
    ppo: PPOSettings
    """Hyperparameters."""

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("seeds must differ")
        return seeds

    @model_validator(mode="after")
    def _closed_sets_have_tables(self) -> "RunSettings":
        if self.algorithm in ("exact", "sft", "dpo") and self.reward != "table":
            raise ValueError(f"algorithm: {self.algorithm} needs the rewards of all allowed answers: `reward: table`")
        if self.algorithm == "ppo" and self.ppo.actions == "all" and self.reward != "table":
            raise ValueError("ppo.actions: all needs `reward: table`; for a reward of your own set `actions: sampled`")
        if self.algorithm in ("exact", "dpo") and (not self.ppo.kl.coefficient or self.ppo.kl.control != "fixed"):
            raise ValueError(
                f"ppo.kl: algorithm: {self.algorithm} needs a fixed coefficient above 0; its optimum is defined by it"
            )
        return self
