"""A training session: how far it has come, whatever the algorithm is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a run has come and what came of it; part of every checkpoint."""

    step: int = 0
    outcome: str = "running"
    """`running`, `interrupted`, `finished` or `collapsed`."""
    reason: str = ""
    """Of a collapse."""
    kept: int = 0
    """Step whose weights are the result."""
    kept_reward: float | None = None
    """Their mean reward on held-out prompts."""
    rate: float = 1.0
    """Factor on the learning rate, lowered after a collapse."""
    healthy: int = 0
    """The last checkpoint at which all looked well."""
