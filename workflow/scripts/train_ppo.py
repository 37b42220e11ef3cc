"""Fine-tune a policy on the rewards of its answers."""

from dataclasses import dataclass
from pathlib import Path

from elkflow.common.cli import parse, run
from elkflow.config.model import ModelSettings
from elkflow.config.ppo import PPOSettings
from elkflow.ppo.train_ppo import Files, train_run


@dataclass(frozen=True)
class Arguments:
    """Train a policy."""

    settings: PPOSettings
    algorithm: str
    reward: str
    trackers: list[str]
    model_settings: ModelSettings
    seed: int
    model: Path  # checkpoint folder
    prompts: Path
    rewards: Path
    val_prompts: Path
    val_rewards: Path
    lineage: list[Path]  # manifests of model, prompts and rewards
    checkpoints: Path  # folder that outlives a killed run
    adapter: Path
    metrics: Path
    samples: Path
    outcome: Path
    manifest: Path


def main(argv: list[str] | None = None) -> None:
    """Train, or resume from the newest checkpoint; exit with code 75 when told to stop before the end."""
    arguments = parse(Arguments, argv)
    inputs = Files(
        arguments.model,
        arguments.prompts,
        arguments.rewards,
        arguments.val_prompts,
        arguments.val_rewards,
        arguments.lineage,
    )
    train_run(
        arguments.settings,
        arguments.model_settings,
        inputs,
        algorithm=arguments.algorithm,
        reward=arguments.reward,
        trackers=arguments.trackers,
        seed=arguments.seed,
        checkpoints=arguments.checkpoints,
        outputs={name: getattr(arguments, name) for name in ("adapter", "metrics", "samples", "outcome")},
        manifest=arguments.manifest,
    )


if __name__ == "__main__":
    run(main)
